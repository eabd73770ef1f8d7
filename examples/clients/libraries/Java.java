import io.github.jopenlibs.vault.Vault;
import io.github.jopenlibs.vault.VaultConfig;
import java.net.URI;
import java.util.Map;
import java.util.TreeMap;
import java.util.concurrent.Callable;
import org.springframework.vault.authentication.TokenAuthentication;
import org.springframework.vault.client.VaultEndpoint;
import org.springframework.vault.core.VaultTemplate;
import org.springframework.vault.support.Versioned;

/**
 * Asks an agent through vault-java-driver and Spring Vault. Prints one line a step: client |
 * operation | result.
 */
public class Java {
    static final String ADDRESS = System.getenv("VAULT_ADDR");
    static final String TOKEN = System.getenv("VAULT_TOKEN");

    static void step(String client, String operation, Callable<?> ask) {
        String result;
        try {
            result = String.valueOf(ask.call());
        } catch (Exception e) { // whatever it is, the application sees it
            result = e.getClass().getSimpleName() + ": " + String.valueOf(e.getMessage()).lines().findFirst().orElse("");
        }
        System.out.println(client + " | " + operation + " | " + result);
    }

    static Vault driver(String token) throws Exception {
        return Vault.create(new VaultConfig().address(ADDRESS).token(token).build(), 2);
    }

    static String driverRead(String token, String path) throws Exception {
        var answer = driver(token).logical().read(path);
        return answer.getRestResponse().getStatus() + " " + new TreeMap<>(answer.getData());
    }

    static String driverRead(String path, int version) throws Exception {
        var answer = driver(TOKEN).logical().read(path, true, version);
        return answer.getRestResponse().getStatus() + " " + new TreeMap<>(answer.getData());
    }

    static VaultTemplate spring(String token) {
        return new VaultTemplate(VaultEndpoint.from(URI.create(ADDRESS)), new TokenAuthentication(token));
    }

    static String springRead(String token, String path) {
        return show(spring(token).opsForVersionedKeyValue("secret").get(path));
    }

    static String show(Versioned<Map<String, Object>> secret) {
        return secret == null ? "null" : new TreeMap<>(secret.getRequiredData()) + " version " + secret.getVersion().getVersion();
    }

    public static void main(String[] args) {
        String driver = "vault-java-driver";
        step(driver, "read", () -> driverRead(TOKEN, "secret/demo/db"));
        step(driver, "read text", () -> driverRead(TOKEN, "secret/demo/text"));
        step(driver, "old version", () -> driverRead("secret/demo/db", 1));
        step(driver, "missing", () -> driverRead(TOKEN, "secret/demo/none"));
        step(driver, "missing version", () -> driverRead("secret/demo/db", 99));
        step(driver, "denied", () -> driverRead(TOKEN, "secret/other/db"));
        step(driver, "list", () -> driver(TOKEN).logical().list("secret/demo").getListData());
        step(driver, "lookup-self", () -> driver(TOKEN).auth().lookupSelf().getPolicies());
        step(driver, "renew-self", () -> driver(TOKEN).auth().renewSelf().isAuthRenewable());
        step(driver, "health", () -> driver(TOKEN).debug().health().getSealed());
        step(driver, "wrong token", () -> driverRead("wrong", "secret/demo/db"));

        String spring = "Spring Vault";
        step(spring, "read", () -> springRead(TOKEN, "demo/db"));
        step(spring, "read text", () -> springRead(TOKEN, "demo/text"));
        step(spring, "read, KV version 1", () -> new TreeMap<>(spring(TOKEN).read("kv/demo/db").getRequiredData()));
        step(spring, "old version", () -> show(spring(TOKEN).opsForVersionedKeyValue("secret").get("demo/db", Versioned.Version.from(1))));
        step(spring, "missing", () -> springRead(TOKEN, "demo/none"));
        step(spring, "missing version", () -> show(spring(TOKEN).opsForVersionedKeyValue("secret").get("demo/db", Versioned.Version.from(99))));
        step(spring, "denied", () -> springRead(TOKEN, "other/db"));
        step(spring, "list", () -> spring(TOKEN).opsForVersionedKeyValue("secret").list("demo"));
        step(spring, "metadata", () -> spring(TOKEN).opsForVersionedKeyValue("secret").opsForKeyValueMetadata().get("demo/db").getCurrentVersion());
        step(spring, "lookup-self", () -> spring(TOKEN).read("auth/token/lookup-self").getRequiredData().get("policies"));
        step(spring, "health", () -> spring(TOKEN).opsForSys().health().isSealed());
        step(spring, "is initialized", () -> spring(TOKEN).opsForSys().isInitialized());
        step(spring, "wrong token", () -> springRead("wrong", "demo/db"));
    }
}
