"""Asks an agent through hvac and dynaconf, as the documentation of AWS asks its agent, and as
that of the Lambda extension does. Prints one line a step: client | operation | result."""
import json
import os
import urllib.error
import urllib.parse
import urllib.request

import dynaconf
import hvac


def step(client, operation, do):
    try:
        result = do()
    except Exception as error:  # whatever it is, the application sees it
        result = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    print(client, operation, str(result).strip(), sep=" | ", flush=True)


# hvac

def hvac_client(token=None):
    return hvac.Client(url=os.environ["VAULT_ADDR"], token=token or os.environ["VAULT_TOKEN"])


def hvac_read(name, version=None):
    kv = hvac_client().secrets.kv.v2
    data = kv.read_secret_version(path=name, version=version, raise_on_deleted_version=True)["data"]
    return f"{data['data']} version {data['metadata']['version']}"


def hvac_metadata(name):
    data = hvac_client().secrets.kv.v2.read_secret_metadata(path=name)["data"]
    return f"current {data['current_version']} of {sorted(data['versions'])}"


step("hvac", "read", lambda: hvac_read("demo/db"))
step("hvac", "read text", lambda: hvac_read("demo/text"))
step("hvac", "read a@b+c=d", lambda: hvac_read("demo/a@b+c=d"))
step("hvac", "old version", lambda: hvac_read("demo/db", 1))
step("hvac", "version 0", lambda: hvac_read("demo/db", 0))
step("hvac", "missing", lambda: hvac_read("demo/none"))
step("hvac", "missing version", lambda: hvac_read("demo/db", 99))
step("hvac", "denied", lambda: hvac_read("other/db"))
step("hvac", "read, KV version 1", lambda: hvac_client().secrets.kv.v1.read_secret(path="demo/db", mount_point="kv")["data"])
step("hvac", "list", lambda: hvac_client().secrets.kv.v2.list_secrets(path="demo")["data"]["keys"])
step("hvac", "metadata", lambda: hvac_metadata("demo/db"))
step("hvac", "metadata, missing", lambda: hvac_metadata("demo/none"))
step("hvac", "lookup-self", lambda: hvac_client().auth.token.lookup_self()["data"]["policies"])
step("hvac", "renew-self", lambda: hvac_client().auth.token.renew_self()["auth"]["renewable"])
step("hvac", "is authenticated", lambda: hvac_client().is_authenticated())
step("hvac", "health", lambda: hvac_client().sys.read_health_status().status_code)
step("hvac", "is initialized, is sealed", lambda: (hvac_client().sys.is_initialized(), hvac_client().sys.is_sealed()))
step("hvac", "wrong token", lambda: hvac_client("wrong").secrets.kv.v2.read_secret_version(path="demo/db", raise_on_deleted_version=True))
step("hvac", "wrong token, is authenticated", lambda: hvac_client("wrong").is_authenticated())


# dynaconf reads secret/dynaconf/{environment}.

def dynaconf_read(path, env="production", **options):
    settings = dynaconf.Dynaconf(
        environments=True, env=env, vault_enabled=True, vault_path=path,
        vault={"url": os.environ["VAULT_ADDR"], "token": os.environ["VAULT_TOKEN"]}, **options)
    return settings.get("PASSWORD", "no such setting")


step("dynaconf", "read", lambda: dynaconf_read("demo"))
step("dynaconf", "read, KV version 2", lambda: dynaconf_read("demo", "staging", VAULT_KV_VERSION_FOR_DYNACONF=2))
step("dynaconf", "missing", lambda: dynaconf_read("demo/none"))
step("dynaconf", "denied", lambda: dynaconf_read("other"))


# The AWS agent, as its documentation asks it.

def token(text):
    """The token itself, or what is in the file of a file:// URL."""
    if text.startswith("file://"):
        with open(text[len("file://"):]) as file:
            text = file.read()
    return text.strip()


def get(url, key):
    request = urllib.request.Request(url, headers={"X-Aws-Parameters-Secrets-Token": key})
    # No proxy: the agent is on this host.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=30) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def aws(path, key=None):
    return get(os.environ["AGENT"] + path, key or token(os.environ["AWS_TOKEN"]))


def aws_text(path, key=None):
    status, body = aws(path, key)
    return f"{status} {body}"


def aws_secret(path):
    status, body = aws(path)
    if status != 200:
        raise RuntimeError(f"{status} {body}")
    value = json.loads(body)
    text = value.get("SecretString", value.get("SecretBinary"))
    return f"{text} {value['VersionStages']} CreatedDate {type(value['CreatedDate']).__name__}"


arn = "arn:aws:secretsmanager:us-east-1:123456789012:secret:demo/db-AbCdEf"
step("AWS agent, Python", "read", lambda: aws_secret("/secretsmanager/get?secretId=demo/db"))
step("AWS agent, Python", "read by path", lambda: aws_secret("/v1/demo/db"))
step("AWS agent, Python", "read by ARN", lambda: aws_secret("/secretsmanager/get?secretId=" + urllib.parse.quote(arn, safe="")))
step("AWS agent, Python", "read by ARN in the path", lambda: aws_secret("/v1/" + arn))
step("AWS agent, Python", "read binary", lambda: aws_secret("/secretsmanager/get?secretId=demo/key"))
step("AWS agent, Python", "old version", lambda: aws_secret("/secretsmanager/get?secretId=demo/db&versionStage=AWSPREVIOUS"))
step("AWS agent, Python", "version by id", lambda: aws_secret("/secretsmanager/get?secretId=demo/db&versionId=v1"))
step("AWS agent, Python", "refresh", lambda: aws_secret("/secretsmanager/get?secretId=demo/db&refreshNow=TRUE"))
step("AWS agent, Python", "missing", lambda: aws_text("/secretsmanager/get?secretId=demo/none"))
step("AWS agent, Python", "missing version", lambda: aws_text("/secretsmanager/get?secretId=demo/db&versionId=v99"))
step("AWS agent, Python", "denied", lambda: aws_text("/secretsmanager/get?secretId=other/db"))
step("AWS agent, Python", "no secretId", lambda: aws_text("/secretsmanager/get"))
step("AWS agent, Python", "unknown parameter", lambda: aws_text("/secretsmanager/get?secretId=demo/db&abc=1"))
step("AWS agent, Python", "another role", lambda: aws_text("/secretsmanager/get?secretId=demo/db&roleArn=arn:aws:iam::123456789012:role/other"))
step("AWS agent, Python", "other path", lambda: aws_text("/other"))
step("AWS agent, Python", "wrong token", lambda: aws_text("/secretsmanager/get?secretId=demo/db", "wrong"))
step("AWS agent, Python", "health", lambda: aws_text("/ping"))


# The Lambda extension, for secrets and for parameters.

def extension(path):
    port = os.environ["PARAMETERS_SECRETS_EXTENSION_HTTP_PORT"]
    status, body = get(f"http://localhost:{port}{path}", os.environ["AWS_SESSION_TOKEN"])
    return f"{status} {body}" if status != 200 else json.loads(body)


def parameter(name):
    answer = extension("/systemsmanager/parameters/get?name=" + urllib.parse.quote(name, safe="") + "&withDecryption=true")
    if isinstance(answer, str):
        return answer
    value = answer["Parameter"]
    return f"{value['Value']} version {value['Version']} {value['Type']}"


step("Lambda extension", "read", lambda: json.loads(extension("/secretsmanager/get?secretId=demo/db")["SecretString"])["password"])
step("Lambda extension", "old version", lambda: json.loads(extension("/secretsmanager/get?secretId=demo/db&versionStage=AWSPREVIOUS")["SecretString"])["password"])
step("Lambda extension", "missing", lambda: extension("/secretsmanager/get?secretId=demo/none"))
step("Lambda extension", "parameter", lambda: parameter("/demo/db"))
step("Lambda extension", "parameter, old version", lambda: parameter("/demo/db:1"))
step("Lambda extension", "parameter, missing", lambda: parameter("/demo/none"))
