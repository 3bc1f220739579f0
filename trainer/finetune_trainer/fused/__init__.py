"""The training step, written for speed: a decoder whose backward pass is written out by hand.

It computes what `model` and `lora` compute, in an order in which a GPU does it in fewer passes over memory, and can do
so only where each process holds the whole base model. docs/design/2026-11-23-fused-step.md tells what each part gains.
"""
