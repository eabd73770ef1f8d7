"""Uses the KMS API of an agent through the SDKs of Alibaba Cloud for Python, the newest, the one
before it, and the caching client. Prints one line a step: client | operation | result."""
import json
import logging
import os
import xml.etree.ElementTree

from alibaba_cloud_secretsmanager_client.model.region_info import RegionInfo
from alibaba_cloud_secretsmanager_client.secret_manager_cache_client_builder import SecretManagerCacheClientBuilder
from alibaba_cloud_secretsmanager_client.service.default_secret_manager_client_builder import DefaultSecretManagerClientBuilder
from alibabacloud_kms20160120 import models
from alibabacloud_kms20160120.client import Client
from alibabacloud_tea_openapi.models import Config
from alibabacloud_tea_util.models import RuntimeOptions
from aliyunsdkcore.client import AcsClient
from aliyunsdkkms.request import v20160120 as requests

ENDPOINT, CA = os.environ["KMS_ENDPOINT"], os.environ["KMS_CA"]
KEY_ID, KEY_SECRET = os.environ["ALIBABA_CLOUD_ACCESS_KEY_ID"], os.environ["ALIBABA_CLOUD_ACCESS_KEY_SECRET"]
VALUE = " <a>&\"'\r\n\t]]> é🔑 "  # which every format has to escape


def step(client, operation, do):
    try:
        result = do()
    except Exception as error:  # whatever it is, the application sees it
        code = getattr(error, "code", None) or getattr(error, "error_code", None)
        result = f"{type(error).__name__}: {code or error}"
    print(client, operation, str(result).strip(), sep=" | ", flush=True)


# alibabacloud_kms20160120 signs with ACS3-HMAC-SHA256.

def sdk(secret=KEY_SECRET):
    return Client(Config(access_key_id=KEY_ID, access_key_secret=secret, endpoint=ENDPOINT, protocol="https", region_id="cn-hangzhou"))


def call(action, secret=KEY_SECRET, **fields):
    name = "".join(word.title() for word in action.split("_"))
    request = getattr(models, name + "Request")(**fields)
    return getattr(sdk(secret), action + "_with_options")(request, RuntimeOptions(ca=CA)).body


def value(**fields):
    got = call("get_secret_value", **fields)
    return f"{got.version_id} {got.secret_data} {got.secret_data_type} {got.version_stages.version_stage}"


def versions():
    return [f"{v.version_id} {v.version_stages.version_stage}" for v in
            call("list_secret_version_ids", secret_name="demo/new", include_deprecated="true").version_ids.version_id]


def batch():
    names = [models.BatchGetSecretValueRequestSecretsList(secret_name=name) for name in ("demo/new", "demo/none")]
    got = call("batch_get_secret_value", secrets_list=names)
    return [s.version_id for s in got.secret_values], [f"{e.secret_name} {e.http_status} {e.code}" for e in got.errors]


def described():
    got = call("describe_secret", secret_name="demo/new", fetch_tags="true")
    return f"{got.secret_type} {got.description} {[f'{t.tag_key}={t.tag_value}' for t in got.tags.tag]} {got.encryption_key_id}"


def listed():
    got = call("list_secrets", page_size=100, filters='[{"Key":"SecretName","Values":["demo/new"]}]')
    return got.total_count, [s.secret_name for s in got.secret_list.secret]


new = "alibabacloud_kms20160120"
step(new, "create", lambda: call("create_secret", secret_name="demo/new", version_id="v1", secret_data=VALUE, description="数据库",
                                 tags='[{"TagKey":"env","TagValue":"dev"}]').arn)
step(new, "create again", lambda: call("create_secret", secret_name="demo/new", version_id="v1", secret_data=VALUE))
step(new, "read, byte for byte", lambda: call("get_secret_value", secret_name="demo/new").secret_data == VALUE)
step(new, "put", lambda: call("put_secret_value", secret_name="demo/new", version_id="v2", secret_data="second",
                              version_stages='["ACSCurrent","blue"]').version_stages.version_stage)
step(new, "read", lambda: value(secret_name="demo/new"))
step(new, "read ACSPrevious", lambda: call("get_secret_value", secret_name="demo/new", version_stage="ACSPrevious").version_id)
step(new, "read for an enclave", lambda: value(secret_name="demo/new", recipient="eyJh"))
step(new, "read in a batch", batch)
step(new, "describe", described)
step(new, "list", listed)
step(new, "roll back", lambda: call("update_secret_version_stage", secret_name="demo/new", version_stage="ACSCurrent", move_to_version="v1").secret_name)
step(new, "versions", versions)
step(new, "password", lambda: len(call("get_random_password", password_length="24").random_password))
step(new, "delete", lambda: call("delete_secret", secret_name="demo/new", recovery_window_in_days="7").secret_name)
step(new, "read what is deleted", lambda: value(secret_name="demo/new"))
step(new, "restore", lambda: call("restore_secret", secret_name="demo/new").secret_name)
step(new, "missing", lambda: value(secret_name="demo/none"))
step(new, "denied", lambda: value(secret_name="other/db"))
step(new, "wrong secret of the key", lambda: value(secret="wrong", secret_name="demo/db"))
step(new, "delete for good", lambda: call("delete_secret", secret_name="demo/new", force_delete_without_recovery="true").secret_name)


# aliyun-python-sdk-kms signs with HMAC-SHA1 and sends everything in the query.

def acs_request(action, **fields):
    module = __import__(f"{requests.__name__}.{action}Request", fromlist=[action])
    request = getattr(module, action + "Request")()
    request.set_endpoint(ENDPOINT)
    request.set_protocol_type("https")
    for name, field in fields.items():
        getattr(request, "set_" + name)(field)
    return request


def acs(secret=KEY_SECRET):
    return AcsClient(KEY_ID, secret, "cn-hangzhou", verify=CA)


def acs_json(action, secret=KEY_SECRET, **fields):
    return json.loads(acs(secret).do_action_with_exception(acs_request(action, **fields)))


def acs_xml(action, **fields):
    request = acs_request(action, **fields)
    request.set_accept_format("XML")
    return xml.etree.ElementTree.fromstring(acs().do_action(request))


def acs_value(**fields):
    got = acs_json("GetSecretValue", **fields)
    return f"{got['VersionId']} {got['SecretData']} {got['VersionStages']['VersionStage']}"


old = "aliyun-python-sdk-kms"
step(old, "create", lambda: acs_json("CreateSecret", SecretName="demo/old", VersionId="v1", SecretData=VALUE)["SecretName"])
step(old, "read, byte for byte", lambda: acs_json("GetSecretValue", SecretName="demo/old")["SecretData"] == VALUE)
step(old, "read in XML, byte for byte", lambda: acs_xml("GetSecretValue", SecretName="demo/old").findtext("SecretData") == VALUE)
step(old, "missing, in XML", lambda: [f"{e.tag}: {e.text}" for e in acs_xml("GetSecretValue", SecretName="demo/none") if e.tag in ("Code", "Message")])
step(old, "put", lambda: acs_json("PutSecretValue", SecretName="demo/old", VersionId="v2", SecretData="second")["VersionStages"])
step(old, "read", lambda: acs_value(SecretName="demo/old"))
step(old, "read ACSPrevious", lambda: acs_json("GetSecretValue", SecretName="demo/old", VersionStage="ACSPrevious")["VersionId"])
step(old, "versions", lambda: acs_json("ListSecretVersionIds", SecretName="demo/old")["TotalCount"])
step(old, "missing", lambda: acs_value(SecretName="demo/none"))
step(old, "denied", lambda: acs_value(SecretName="other/db"))
step(old, "wrong secret of the key", lambda: acs_value(secret="wrong", SecretName="demo/db"))
step(old, "delete for good", lambda: acs_json("DeleteSecret", SecretName="demo/old", ForceDeleteWithoutRecovery="true")["SecretName"])


# aliyun-secret-manager-client reads through aliyun-python-sdk-kms and keeps what it read.

logging.disable(logging.CRITICAL)
cache = SecretManagerCacheClientBuilder.new_cache_client_builder(
    DefaultSecretManagerClientBuilder.standard().with_access_key(KEY_ID, KEY_SECRET).add_region_info(RegionInfo("cn-hangzhou", False, ENDPOINT)).build()
).build()
caching = "aliyun-secret-manager-client"
step(caching, "read", lambda: cache.get_secret_info("demo/db").secret_value)
step(caching, "read again", lambda: cache.get_secret_value("demo/db"))
step(caching, "refresh", lambda: cache.refresh_now("demo/db"))
step(caching, "missing", lambda: cache.get_secret_info("demo/none"))
step(caching, "denied", lambda: cache.get_secret_info("other/db"))
cache.close()
