"""Arithmetic before anything is held: how many steps, in which precision, sharded how, and does it fit.

Knows no torch and does no I/O, so that a plan can be made anywhere. Story, top to bottom: `plan` resolves what a spec
leaves open, `fitting` chooses by memory and says what would fit, `launches` says whether a GPU repeats a step's kernels
by itself, `memory` estimates a process's peak, `formats` says in which numbers and by which kernels.
"""
