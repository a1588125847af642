"""Settings of the export's property tests: networks take their time on a busy machine."""

from hypothesis import settings

settings.register_profile("export", deadline=None)
settings.load_profile("export")
