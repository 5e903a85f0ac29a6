"""What people copy: launch scripts, a spec, a reward function and a deployment of one's own. Not part of the wheel."""
