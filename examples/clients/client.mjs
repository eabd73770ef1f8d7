// node client.mjs kms|aws NAME: prints the value of a secret.
import { readFileSync } from "node:fs";

const agent = process.env.AGENT ?? "http://127.0.0.1:2025";

// The token itself, or what is in the file of a file:// URL.
function token(variable) {
  const text = process.env[variable];
  return (text.startsWith("file://") ? readFileSync(new URL(text), "utf8") : text).trim();
}

async function ask(path, headers) {
  const answer = await fetch(agent + path, { headers, signal: AbortSignal.timeout(10_000) });
  if (!answer.ok) throw new Error(`${answer.status} ${await answer.text()}`);
  return answer.json();
}

const clients = {
  async kms(name) {
    return (await ask(`/v1/${encodeURIComponent(name)}`, { "X-KMS-Token": token("KMS_TOKEN") })).SecretData;
  },
  async aws(name) {
    const path = `/secretsmanager/get?secretId=${encodeURIComponent(name)}`;
    return (await ask(path, { "X-Aws-Parameters-Secrets-Token": token("AWS_TOKEN") })).SecretString;
  },
};

const [mode, name] = process.argv.slice(2);
console.log(await clients[mode](name));
