"""``keepalive-top``: the debug endpoint of a server in a terminal, as ``top`` shows processes.

``endpoint.py`` fetches reports and says what is wrong where there is none, ``report.py`` knows one when it
sees it, ``view.py`` makes rates, sparklines, rows and lines of them without any I/O, ``screen.py`` draws and
takes keys (by textual, the extra ``top``), ``command.py`` is the command line. It runs wherever the
endpoint can be reached and imports neither gunicorn nor gevent.
"""
