"""The commands set and test of a rotation, for an account of Redis.

    redis-acl.py set SOCKET FILE   the account has both passwords, the current and the pending one
    redis-acl.py test SOCKET       log in with the pending one

Standard input has both versions, as JSON. FILE holds the password of an account that may change
others. With "set" the passwords of the account are just these two, so that older ones end, and it
may run again and again.
"""

import json
import socket
import sys


class Redis:
    """A connection that sends commands and reads answers of one line, which is all we need."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(10)
        self.socket.connect(path)
        self.answers = self.socket.makefile("rb")

    def call(self, *words):
        words = [word.encode() for word in words]
        self.socket.sendall(b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(w), w) for w in words))
        answer = self.answers.readline().decode().strip()
        if not answer.startswith("+"):
            sys.exit(f"{words[0].decode()}: {answer or 'the connection was closed'}")  # never the words after the first


def main(step, path, admin_file=None):
    versions = json.load(sys.stdin)
    pending = json.loads(versions["Pending"]["SecretData"])
    current = json.loads(versions["Current"]["SecretData"])
    redis = Redis(path)
    if step == "test":
        redis.call("AUTH", pending["username"], pending["password"])
        return
    with open(admin_file, encoding="utf-8") as file:
        redis.call("AUTH", file.read().strip())
    redis.call("ACL", "SETUSER", pending["username"], "resetpass", ">" + current["password"], ">" + pending["password"])


main(*sys.argv[1:])
