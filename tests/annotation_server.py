"""The annotation server of a run, in a process of its own: python annotation_server.py RUN PORT"""

import sys

import uvicorn

from engine.store import open_store
from web.serve import open_app

if __name__ == "__main__":
    with open_app(open_store(sys.argv[1])) as app:
        uvicorn.run(app, port=int(sys.argv[2]), log_level="warning")
