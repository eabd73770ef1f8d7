"""python3 client.py kms|aws NAME: prints the value of a secret."""
import json
import os
import sys
import urllib.parse
import urllib.request

AGENT = os.environ.get("AGENT", "http://127.0.0.1:2025")


def token(variable):
    """The token itself, or what is in the file of a file:// URL."""
    text = os.environ[variable]
    if text.startswith("file://"):
        with open(text[len("file://"):]) as file:
            text = file.read()
    return text.strip()


def ask(path, headers):
    # No proxy: the agent is on this host and refuses requests that were forwarded.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(urllib.request.Request(AGENT + path, headers=headers), timeout=10) as answer:
        return json.load(answer)


def kms(name):
    path = "/v1/" + urllib.parse.quote(name, safe="")
    return ask(path, {"X-KMS-Token": token("KMS_TOKEN")})["SecretData"]


def aws(name):
    path = "/secretsmanager/get?secretId=" + urllib.parse.quote(name, safe="")
    return ask(path, {"X-Aws-Parameters-Secrets-Token": token("AWS_TOKEN")})["SecretString"]


print({"kms": kms, "aws": aws}[sys.argv[1]](sys.argv[2]))
