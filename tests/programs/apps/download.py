"""A download through one connection, at some hundred kilobytes each second until it is told to end."""
import os
import sys
import time
import urllib.request

url, home = sys.argv[1:]
with urllib.request.urlopen(url) as answer, open(home + "/download", "wb", buffering=0) as file:
    length = int(answer.headers["Content-Length"])
    while block := answer.read(32768):
        file.write(block)
        if not os.path.exists(home + "/finish"):
            time.sleep(0.2)
    assert file.tell() == length, (file.tell(), length)
print("done", flush=True)
