"""Files to copy: launch scripts, a spec, a reward function and a deployment. Not part of the wheel."""
