"""`python -m vpo_plugin.train_ppo_ray`: OpenRLHF's own `train_ppo_ray` with `--advantage` and `--vpo.*`."""

from vpo_plugin.openrlhf.launcher import main

if __name__ == "__main__":
    main()
