// Package builtin is the built-in Secrets Manager: versions, stage labels, deletion windows and
// tags as Alibaba Cloud KMS has them, kept encrypted in a [Storage].
//
// The rules are here and nowhere else. A Storage keeps keys and values, in transactions, and knows no
// rule; package bolt has one in a file, and package etcd one on a cluster that many share. They open a [Store]
// on it, too.
//
// A Store implements [upstream.Manager]; all its methods are safe for concurrent use. A
// write is answered after it is committed. An operation validates before it changes anything, in a
// transaction that reads all that it decides by.
//
// # Encryption
//
// Everything a secret consists of is sealed with AES-256-GCM: each value, bound to secret
// name, version id and data type, and each secret's metadata (labels, versions, tags, times,
// policy), bound to the name; both also to the [Place] of the storage. Names of secrets and versions stay
// readable, as do sizes. The keys are a cleartext Tink keyset in a file, the keyring, which with the
// storage gives the secrets: keep the two apart. Key ids are Tink's, in decimal.
//
// [Store.RotateKey] adds a key and makes it primary; in a [Shared] storage, whose agents have a keyring file
// each, as soon as all of them have the key. Old values stay readable under the old key until a re-encryption
// has rewritten them, which is noted in the storage and goes on after a crash: in the [Store.Run] of an agent,
// with pauses, or in [Store.Reencrypt]. CreateSecret may name a key of the keyring, which that secret then uses
// whatever is primary; a re-encryption ends this too, because a key is usually rotated because it is no longer
// trusted.
//
// EncryptionKeyId is what the creator of the secret named, as it was named, and absent where none
// was. Nothing changes it: no rotation, and no re-encryption, after which it is the id of a key that
// protects the secret no more. Infrastructure code that compares it, such as Terraform's, would
// otherwise replace the secret. [Store.Keys] tells which keys protect how much. A secret of a
// database that is older than this rule has the key that was named when it was created, unless
// Reencrypt has ended that already: then, as if none had been named, it has none.
//
// # Emulation
//
// Where the published rules of the API and what infrastructure code expects of it part, the rules
// are the default, and [Emulate] does what the code expects:
//
// A repeated PutSecretValue, of the same data under the same version id, is ignored, as the API's
// documentation has it: other VersionStages in it are not attached, so that a retry of an old
// request never takes ACSCurrent back. Terraform's alicloud_kms_secret sends exactly that, after
// each creation with version_stages and to change them, and otherwise shows a difference for ever.
// With PutMovesStages such a request makes the labels that it names those of the version: they
// move there, ACSCurrent too, and the version's custom labels that it does not name are removed.
// A request that names none is ignored as ever.
//
// A KMS instance, secret policies and keys of the cloud do not exist here, and what names them is
// refused. With an InstanceID, CreateSecret takes it as DKMSInstanceId, and every secret has a
// policy, whether it is in the instance or not: [upstream.DefaultPolicy] until it is given another.
// With Keys, CreateSecret takes these as EncryptionKeyId. All of them are kept and told, and nothing
// else: a policy must have the documented form, but it allows and denies nothing, which is for the
// access keys of the API; and a secret with a key of the cloud is sealed with the primary key of
// the keyring, like one that names none. What a secret was created with stays when the setting goes.
//
// # Moving
//
// A [Transfer] moves secrets as a whole from one [Keeper] to another: each [Secret] is opened with the keys of the one
// and sealed with those of the other, and is never in a file in the clear. It compares first and moves what differs, so
// that repeating it goes on with one that was interrupted. A backup is a database of package bolt, made by a copy of
// the file or by a transfer from another storage at one moment; [Restore] makes a storage what a backup is.
//
// # Design notes
//
// What lists ask is also in memory, in a tree that counts: the names, when a deletion is due, and
// hashes of descriptions and tags under a seed of the process, which are no copy of what the file
// keeps sealed. So a page costs what is on it, wherever it is in the list, 0.1 ms for a hundred
// secrets; otherwise its number and the total would mean to open every record. The first page of a
// filter takes a look at the whole tree, 1 to 2 ms for 100,000 secrets against 50 ms for their
// records, and what was selected is remembered for the further ones until a change of what lists show. An index
// per tag would save that too, but cost everybody twice the memory. As it is a secret takes some
// 160 bytes, and 60 more for each tag that no other has: 100,000 of them 16 to 23 MB, when the
// program itself has 12. Reading or describing a secret, and finding what to purge, take the same
// time in a large database as in a small one. BenchmarkScale shows all this.
//
// A metadata record is rewritten whole with each change of the secret: it is a few hundred
// bytes, and one record per secret makes each change atomic by itself.
//
// Nonces are random, 96 bits: a key should be rotated before it has sealed 2³² records.
package builtin

// Account is the region and account in the ARNs of the secrets; see [upstream.OfAccount].
const Account = "acs:kms:local:0"
