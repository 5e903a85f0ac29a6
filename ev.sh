for by in all base; do for mutation in prefix turn; do
  flags=""; [ $by = base ] && flags="--unsolved_by base"
  python -m flows.evolution --spec docs/evidence/evolution/$mutation.yaml --sets vpo $flags \
    --policies base=reward_specs/maze_small/policy grpo=runs/demo/train/grpo/policy vpo=runs/demo/train/vpo/policy \
    --prompts 200 --candidates 30 --budget 120 \
    --work runs/evolution/$by-$mutation --output docs/evidence/evolution/$by/$mutation || exit 1
done; done
