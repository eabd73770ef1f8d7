// Package builtin is the built-in Secrets Manager: versions, stage labels, deletion windows and
// tags as Alibaba Cloud KMS has them, kept encrypted in one bbolt file on the local disk.
//
//	store, err := builtin.Open(builtin.Options{
//		Database: "/var/lib/secretagent/secrets.db",
//		Keyring:  "/etc/secretagent/keyring.json",
//	})
//	if err != nil { … }
//	defer store.Close()
//	go store.Run(ctx) // purges secrets whose deletion window has passed
//
// A [Store] implements [upstream.Manager]; all its methods are safe for concurrent use. A
// write is answered after it is on disk. Reads run on a snapshot of their own and never wait
// for a write. One process has a database open at a time; [Open] reports [ErrLocked] to the
// others.
//
// # Writing
//
// One goroutine does all writing. Writes that arrive while it is busy with the disk go
// together into its next transaction, so that many writers share one sync; a lone writer
// does not wait. A write whose context ends while it waits in line is not executed. Once it has
// begun its caller still gets the context's error at once, but the write goes on and its
// outcome is not reported: read, or repeat the write, to learn it.
//
// # Encryption
//
// Everything a secret consists of is sealed with AES-256-GCM: each value, bound to secret
// name, version id and data type, and each secret's metadata (labels, versions, tags, times,
// policy), bound to the name. Names of secrets and versions stay readable in the file, as do sizes.
// The keys are a cleartext Tink keyset in a file of its own, the keyring. Both files together
// give the secrets, so keep the keyring apart from the database and out of its backups. Key ids
// are Tink's, in decimal.
//
// [Store.RotateKey] adds a key and makes it primary. Old values stay readable under the old
// key until [Store.Reencrypt] has rewritten them. CreateSecret may name a key of the keyring,
// which that secret then uses whatever is primary; Reencrypt ends this too, because a key is
// usually rotated because it is no longer trusted.
//
// EncryptionKeyId is what the creator of the secret named, as it was named, and absent where none
// was. Nothing changes it: no rotation, and no Reencrypt, after which it is the id of a key that
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
// # Damage
//
// A file that was cut short or changed is never served as if it were whole: Open checks the
// structure of the file and authenticates the metadata of every secret, and each read
// authenticates what it returns. Both report [ErrDamaged], name the secret where one is
// affected, and leave the file as it is. bbolt maps the file into memory and trusts it, so
// every transaction here also turns a memory fault into that error.
//
// # Design notes
//
// Group commit is our own and not bbolt's Batch: Batch waits for a timer before it commits,
// also when there is one writer only, and runs a failing function twice. Here an operation
// validates before it changes anything, so that a refused one does not disturb the others in
// its transaction. When an operation fails half-way, or the transaction cannot be committed,
// the batch runs again one by one, and each writer gets its own outcome.
//
// Open reads every page that has structure in it (not the bodies of values that fill pages of
// their own) and decrypts one record per secret: some two milliseconds for a thousand secrets, and
// 0.2 s for 100,000.
// The alternative is to trust the file until a read meets the damage, and a damaged page can
// make bbolt recurse without end, which no recover catches, or hide a secret that then looks
// deleted. bbolt's own Check cannot be used for this: it runs in a goroutine of its own, where
// a memory fault ends the process. bbolt would also fall back to the previous transaction when
// the newest of the two header pages is damaged; that silently loses an acknowledged write, so
// Open refuses. Header pages are smaller than a disk sector and not torn by a crash.
//
// The map of the file is made large at once, since growing it makes bbolt wait for all reads
// and hold up new ones; it costs address space, not memory.
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
// bytes, and one record per secret makes each change atomic by itself. Deleted values leave
// their ciphertext in free pages of the file until it is compacted, which copies it while writes wait: at
// the end of a re-encryption, and within some seconds of a forced deletion or a purge. [Store.Run] does
// it at most every 10 s and for at most a tenth of the time, and after a failure in a minute, later in an hour.
// What cannot succeed is not begun: without room for the copy, or where the file is a mount point. From then on the file holds nothing older
// than what can be read. What the disk below keeps of
// the old file, a copy-on-write file system, a snapshot, a backup, is beyond its reach. An older copy of the
// whole file in its place is not noticed: nothing inside a file can prove that it is the newest.
//
// Nonces are random, 96 bits: a key should be rotated before it has sealed 2³² records.
package builtin

// Account is the region and account in the ARNs of the secrets; see [upstream.OfAccount].
const Account = "acs:kms:local:0"
