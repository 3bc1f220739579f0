"""What holds for every test."""

from hypothesis import settings

# An example that takes long says something about the machine's other work, and nothing about the code.
settings.register_profile("project", deadline=None)
settings.load_profile("project")
