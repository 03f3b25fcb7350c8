"""Flask."""

import hashlib

from flask import Flask, request

app = Flask(__name__)


@app.get("/")
def home():
    return "hello"


@app.post("/upload")
def upload():
    digest, size = hashlib.sha256(), 0
    while part := request.stream.read(65536):
        digest.update(part)
        size += len(part)
    return {"size": size, "sha256": digest.hexdigest()}


@app.get("/stream")
def stream():
    return (f"part {number}\n" for number in range(5))


@app.get("/fail")
def fail():
    raise RuntimeError("on purpose")


@app.get("/headers")
def headers():
    return dict(request.headers.items())
