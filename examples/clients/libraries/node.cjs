// Asks an agent through node-vault. Prints one line a step: client | operation | result.
const vault = require("node-vault");

const client = (token = process.env.VAULT_TOKEN) => vault({ endpoint: process.env.VAULT_ADDR, token });

async function step(operation, ask) {
  let result;
  try {
    result = await ask();
  } catch (error) { // whatever it is, the application sees it
    result = `${error.name}: ${error.message}`;
  }
  console.log(["node-vault", operation, result].join(" | "));
}

async function read(path) {
  const { data } = await client().read(path);
  return `${JSON.stringify(data.data)} version ${data.metadata.version}`;
}

(async () => {
  await step("read", () => read("secret/data/demo/db"));
  await step("read text", () => read("secret/data/demo/text"));
  await step("old version", () => read("secret/data/demo/db?version=1"));
  await step("missing", () => read("secret/data/demo/none"));
  await step("missing version", () => read("secret/data/demo/db?version=99"));
  await step("denied", () => read("secret/data/other/db"));
  await step("list", async () => (await client().list("secret/metadata/demo")).data.keys.join(" "));
  await step("metadata", async () => {
    const { data } = await client().read("secret/metadata/demo/db");
    return `current ${data.current_version} of ${Object.keys(data.versions).join(" ")}`;
  });
  await step("lookup-self", async () => (await client().tokenLookupSelf()).data.policies.join(" "));
  await step("renew-self", async () => (await client().tokenRenewSelf()).auth.renewable);
  await step("health", async () => (await client().health()).sealed);
  await step("is initialized, is sealed", async () => `${(await client().initialized()).initialized} ${(await client().status()).sealed}`);
  await step("wrong token", () => client("wrong").read("secret/data/demo/db"));
})();
