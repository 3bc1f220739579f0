"""From conversations to packed sequences on disk, and the order in which they are trained.

Story, top to bottom: `read` finds rows in files, `formats` understands them as a `conversation`, `render` turns a
conversation into tokens with the model's own chat template, `packing` puts several into one sequence, `packed`
writes and maps them, `order` says which sequences a step trains on, `batch` makes tensors of them.
"""
