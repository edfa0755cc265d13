"""LoRA on the CPU: what an adapter adds to a step costs its own weights, read once, whoever else is in the step.

vLLM's own CPU path copies the weights of an adapter once for every row, computes at the padded rank in 32 bit, and
lets rows without an adapter read the last slot's. Here, for each fused layer (qkv, o, gate-up, down):

- the adapters in the engine's slots lie side by side, each at its own rank, in arenas of vLLM's own packed format
  (`layer`, `products`), so that one batched product serves neighbouring slots;
- a step's rows are sorted by adapter once (`plan`), and whatever isn't in the step isn't computed: adapters, layers
  and slices that no row needs, and everything when all rows are the base's;
- a row is only ever multiplied with its own adapter's weights. Nothing is masked, so a NaN of one adapter has no way
  to another's row;
- an adapter with many rows (a prompt that is being read) goes by itself, through the weights as they were loaded.

Taking a slot is taking a reference: weights stay where they were read to, and are packed a layer at a time, within a
fixed share of the time, while the steps that need them already run.

`plan` is pure. The rest is loaded only inside vLLM's processes, by `service.engine.plugin`.
"""
