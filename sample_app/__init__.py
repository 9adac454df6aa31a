"""One small site as a Flask and as a Django application, to run under keepalive_worker."""
