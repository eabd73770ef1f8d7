// Package convert turns configurations and templates of other programs into ours: those of
// Alibaba's KMS Agent and the AWS Secrets Manager Agent, which are TOML, and those of Vault Agent
// (OpenBao's too) and consul-template, which are HCL or JSON.
//
// Every key of the input is taken over or named in a [Note], with the reason and what to do; the
// notes stand as comments at the top of the agent.yaml that comes out. A value that is unfit here
// is noted and left out. No note and no error quotes a value: it may be secret.
//
// # Templates
//
// A template is parsed by text/template/parse and executed in the abstract. Of every value the
// rewriter knows whether it is an answer of Vault, the data in it, or the fields of a secret, so that
//
//	{{ with secret "secret/data/app/db" }}{{ .Data.data.password }}{{ end }}
//
// becomes
//
//	{{ with secretJSON "app/db" }}{{ .password }}{{ end }}
//
// Variables, pipelines, templates that are defined, else branches and delimiters of one's own are
// followed. An action that changes is written anew in its place; every other byte stays. What has no
// counterpart becomes a call of fail, so that no file is rendered without it.
//
// A field that is missing is an error in our templates and nothing in theirs. In a condition it
// becomes dig with an empty default, which keeps the meaning; where it is printed it stays an error.
//
// # Names
//
// The name of a secret is its path in Vault without the mount: secret/data/app/db becomes app/db.
// [Options].Mounts puts a prefix in place of a mount. Keys of Consul keep their path.
//
// # Design notes
//
// HCL is read by version 1 of HashiCorp's own library, at the tag that Vault, Nomad and
// consul-template use: version 2 is another language, in which "${" is no text. It brings no other
// module with it. Brackets that are nested too deeply are refused before a parser sees them.
package convert
