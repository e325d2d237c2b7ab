"""Settings of every test: hypothesis without deadlines, because a first call may compile, and repeatable."""

from hypothesis import settings

settings.register_profile("underpar", deadline=None, derandomize=True)
settings.load_profile("underpar")
