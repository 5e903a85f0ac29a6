"""Everything that touches the host, OpenRLHF.

`launcher` runs the host's own command line: `flags` adds the plugin's, `checks` finds the mistakes before
anything starts, `output` claims the output folder. `settings` travel to every Ray worker of a run, and `worker`
is what each of them does first. `experience` turns reward matrices into advantages inside the host's trainer;
`agent` writes the responses, or lets a user's own agent do so, and hands them to `scorer`, processes beside the engine;
`given_rewards` takes the rewards of a user's own code. `trainer`, `dynamic_filter`, `evaluation` and `lora` are
what the host's trainers do more; `cpu` lets the host run where there is no CUDA. No file of the host is edited, and
every symbol of the host that is wrapped is listed in `worker` (all machines) and `cpu` (machines without CUDA).
"""
