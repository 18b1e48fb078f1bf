"""The annotation server of a run, in a process of its own: python annotation_server.py RUN PORT"""

import sys

import uvicorn

from engine.store import open_store
from web.serve import app_of

if __name__ == "__main__":
    uvicorn.run(app_of(open_store(sys.argv[1])), port=int(sys.argv[2]), log_level="warning")
