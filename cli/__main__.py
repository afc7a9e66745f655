"""``python -m spikeport``."""

from spikeport.main import app

app()
