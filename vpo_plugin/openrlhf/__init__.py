"""All code that touches the host, OpenRLHF.

`launcher` runs the host's own command line: `flags` adds the plugin's flags, `checks` finds mistakes before
anything starts, `output` claims the output folder. `settings` reach every Ray worker of a run, and each worker runs
`worker` first. `experience` turns reward matrices into advantages inside the host's trainer. `agent` writes the
responses, or lets a user's own agent do so, and passes them to `scorer`, processes beside the engine. `given_rewards`
takes rewards from a user's own code. `trainer`, `dynamic_filter`, `evaluation` and `lora` extend the host's trainers.
`cpu` lets the host run without CUDA. No file of the host is edited. `worker` (all machines) and `cpu` (machines without
CUDA) list every wrapped symbol of the host.
"""
