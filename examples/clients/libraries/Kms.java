import com.aliyun.kms20160120.Client;
import com.aliyun.kms20160120.models.*;
import com.aliyun.tea.TeaException;
import com.aliyun.teaopenapi.models.Config;
import com.aliyun.teautil.models.RuntimeOptions;
import com.aliyuncs.AcsResponse;
import com.aliyuncs.DefaultAcsClient;
import com.aliyuncs.RpcAcsRequest;
import com.aliyuncs.exceptions.ClientException;
import com.aliyuncs.http.FormatType;
import com.aliyuncs.http.ProtocolType;
import com.aliyuncs.kms.model.v20160120.GetSecretValueRequest;
import com.aliyuncs.kms.model.v20160120.ListSecretVersionIdsRequest;
import com.aliyuncs.kms.secretsmanager.client.SecretCacheClient;
import com.aliyuncs.kms.secretsmanager.client.SecretCacheClientBuilder;
import com.aliyuncs.kms.secretsmanager.client.model.RegionInfo;
import com.aliyuncs.kms.secretsmanager.client.service.BaseSecretManagerClientBuilder;
import com.aliyuncs.profile.DefaultProfile;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.concurrent.Callable;
import java.util.stream.Collectors;

/**
 * Uses the KMS API of an agent through the SDKs of Alibaba Cloud for Java, the newest, the one
 * before it, and the caching client. Prints one line a step: client | operation | result.
 */
public class Kms {
    static final String ENDPOINT = System.getenv("KMS_ENDPOINT");
    static final String KEY_ID = System.getenv("ALIBABA_CLOUD_ACCESS_KEY_ID");
    static final String KEY_SECRET = System.getenv("ALIBABA_CLOUD_ACCESS_KEY_SECRET");

    /** What every format has to escape. */
    static final String VALUE = " <a>&\"'\r\n\t]]> \u00e9\ud83d\udd11 ";

    static void step(String client, String operation, Callable<?> ask) {
        String result;
        try {
            result = String.valueOf(ask.call());
        } catch (Exception e) { // whatever it is, the application sees it
            Throwable last = e;
            while (last.getCause() != null && !(last instanceof ClientException)) {
                last = last.getCause();
            }
            result = last.getClass().getSimpleName() + ": "
                    + (last instanceof TeaException t ? t.getCode() : last instanceof ClientException c ? c.getErrCode() : last.getMessage());
        }
        System.out.println(client + " | " + operation + " | " + result);
    }

    // kms20160120 signs with ACS3-HMAC-SHA256.

    static Client sdk(String secret) throws Exception {
        return new Client(new Config().setAccessKeyId(KEY_ID).setAccessKeySecret(secret).setEndpoint(ENDPOINT).setProtocol("https")
                .setCa(Files.readString(Path.of(System.getenv("KMS_CA")))));
    }

    static com.aliyun.kms20160120.models.GetSecretValueRequest get(String name) {
        return new com.aliyun.kms20160120.models.GetSecretValueRequest().setSecretName(name);
    }

    static GetSecretValueResponseBody read(com.aliyun.kms20160120.models.GetSecretValueRequest request) throws Exception {
        return sdk(KEY_SECRET).getSecretValueWithOptions(request, new RuntimeOptions()).getBody();
    }

    static String put(String name, String version, String value) throws Exception {
        return sdk(KEY_SECRET).putSecretValue(new PutSecretValueRequest().setSecretName(name).setVersionId(version).setSecretData(value))
                .getBody().getVersionStages().getVersionStage().toString();
    }

    static String delete(String name) throws Exception {
        return sdk(KEY_SECRET).deleteSecret(new DeleteSecretRequest().setSecretName(name).setForceDeleteWithoutRecovery("true")).getBody().getSecretName();
    }

    static void newest() {
        String client = "kms20160120";
        step(client, "create", () -> sdk(KEY_SECRET).createSecret(new CreateSecretRequest().setSecretName("demo/new").setVersionId("v1").setSecretData(VALUE)
                .setTags("[{\"TagKey\":\"env\",\"TagValue\":\"dev\"}]")).getBody().getArn());
        step(client, "read, byte for byte", () -> read(get("demo/new")).getSecretData().equals(VALUE));
        step(client, "put", () -> put("demo/new", "v2", "second"));
        step(client, "read", () -> read(get("demo/new")).getVersionId() + " " + read(get("demo/new")).getSecretData());
        step(client, "read ACSPrevious", () -> read(get("demo/new").setVersionStage("ACSPrevious")).getVersionId());
        step(client, "describe", () -> sdk(KEY_SECRET).describeSecret(new DescribeSecretRequest().setSecretName("demo/new").setFetchTags("true")).getBody()
                .getTags().getTag().stream().map(t -> t.getTagKey() + "=" + t.getTagValue()).collect(Collectors.joining(",")));
        step(client, "list", () -> sdk(KEY_SECRET).listSecrets(new ListSecretsRequest()).getBody().getSecretList().getSecret().stream()
                .map(s -> s.getSecretName()).sorted().collect(Collectors.joining(",")));
        step(client, "missing", () -> read(get("demo/none")));
        step(client, "denied", () -> read(get("other/db")));
        step(client, "wrong secret of the key", () -> sdk("wrong").getSecretValue(get("demo/db")));
    }

    // aliyun-java-sdk-kms signs with HMAC-SHA1. It asks for JSON or for XML.

    static <T extends AcsResponse> T acs(String secret, FormatType format, RpcAcsRequest<T> request) throws Exception {
        request.setSysEndpoint(ENDPOINT);
        request.setSysProtocol(ProtocolType.HTTPS);
        request.setAcceptFormat(format);
        return new DefaultAcsClient(DefaultProfile.getProfile("cn-hangzhou", KEY_ID, secret)).getAcsResponse(request);
    }

    static GetSecretValueRequest acsGet(String name) {
        GetSecretValueRequest request = new GetSecretValueRequest();
        request.setSecretName(name);
        return request;
    }

    static void older(FormatType format) {
        String client = "aliyun-java-sdk-kms, " + format;
        step(client, "read, byte for byte", () -> {
            GetSecretValueRequest request = acsGet("demo/new");
            request.setVersionId("v1");
            return acs(KEY_SECRET, format, request).getSecretData().equals(VALUE);
        });
        step(client, "read", () -> {
            var got = acs(KEY_SECRET, format, acsGet("demo/new"));
            return got.getVersionId() + " " + got.getSecretData() + " " + got.getVersionStages();
        });
        step(client, "versions", () -> {
            ListSecretVersionIdsRequest request = new ListSecretVersionIdsRequest();
            request.setSecretName("demo/new");
            return acs(KEY_SECRET, format, request).getVersionIds().stream().map(v -> v.getVersionId() + " " + v.getVersionStages()).collect(Collectors.joining(","));
        });
        step(client, "missing", () -> acs(KEY_SECRET, format, acsGet("demo/none")));
        step(client, "denied", () -> acs(KEY_SECRET, format, acsGet("other/db")));
        step(client, "wrong secret of the key", () -> acs("wrong", format, acsGet("demo/db")));
    }

    // alibabacloud-secretsmanager-client asks for XML, whatever it is told, and keeps what it read.

    static void caching() throws Exception {
        SecretCacheClient cache = SecretCacheClientBuilder.newCacheClientBuilder(
                BaseSecretManagerClientBuilder.standard().withAccessKey(KEY_ID, KEY_SECRET).addRegion(new RegionInfo("cn-hangzhou", ENDPOINT)).build()).build();
        String client = "alibabacloud-secretsmanager-client";
        step(client, "read", () -> cache.getSecretInfo("demo/db").getSecretValue());
        step(client, "read again", () -> cache.getStringValue("demo/db"));
        step(client, "roll back and refresh", () -> {
            String before = cache.getStringValue("demo/new");
            sdk(KEY_SECRET).updateSecretVersionStage(new UpdateSecretVersionStageRequest().setSecretName("demo/new").setVersionStage("ACSCurrent").setMoveToVersion("v1"));
            return before + ", " + cache.refreshNow("demo/new");
        });
        step(client, "read, byte for byte", () -> cache.getStringValue("demo/new").equals(VALUE));
        step(client, "read what XML cannot carry", () -> {
            put("demo/new", "v3", "a\u0001b");
            return cache.refreshNow("demo/new") + ", kept: " + cache.getStringValue("demo/new").equals(VALUE);
        });
        step(client, "missing", () -> cache.getSecretInfo("demo/none"));
        step(client, "denied", () -> cache.getSecretInfo("other/db"));
        cache.close();
    }

    public static void main(String[] args) throws Exception {
        newest();
        older(FormatType.JSON);
        older(FormatType.XML);
        caching();
        step("kms20160120", "delete for good", () -> delete("demo/new"));
        System.exit(0); // the clients leave threads behind
    }
}
