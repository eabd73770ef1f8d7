// Package bolt keeps the built-in Secrets Manager, which package builtin is, in one bbolt file on the
// local disk.
//
//	store, err := bolt.Open(bolt.Options{
//		Database: "/var/lib/secretagent/secrets.db",
//		Options:  builtin.Options{Keyring: "/etc/secretagent/keyring.json"},
//	})
//	if err != nil { … }
//	defer store.Close()
//	go store.Run(ctx) // purges secrets whose deletion window has passed, and goes on with a re-encryption
//
// A write is answered after it is on disk. Reads run on a snapshot of their own and never wait
// for a write. One process has a database open at a time; [Open] reports [ErrLocked] to the
// others. Names of secrets and versions are readable in the file, as are sizes. Keep the keyring apart
// from the database and out of its backups.
//
// # Writing
//
// One goroutine does all writing. Writes that arrive while it is busy with the disk go
// together into its next transaction, so that many writers share one sync; a lone writer
// does not wait. A write whose context ends while it waits in line is not executed. Once it has
// begun its caller still gets the context's error at once, but the write goes on and its
// outcome is not reported: read, or repeat the write, to learn it.
//
// # Damage
//
// A file that was cut short or changed is never served as if it were whole: Open checks the
// structure of the file and authenticates the metadata of every secret, and each read
// authenticates what it returns. Both report [builtin.ErrDamaged], name the secret where one is
// affected, and leave the file as it is. bbolt maps the file into memory and trusts it, so
// every transaction here also turns a memory fault into that error.
//
// # Backup
//
// [Store.CopyTo] and [Store.Backup] write a copy of one moment while everything goes on, without what was deleted or
// replaced. The copy is a database, so that [Open] checks it as such, with ReadOnly without changing it. [Store.Restore]
// puts it in the place of another one, which it has locked until then, with one rename.
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
// Deleted values leave
// their ciphertext in free pages of the file until it is compacted, which copies it while writes wait: at
// the end of a re-encryption, and within some seconds of a forced deletion or a purge. [Store.Run] does
// it at most every 10 s and for at most a tenth of the time, and after a failure in a minute, later in an hour.
// What cannot succeed is not begun: without room for the copy, or where the file is a mount point. From then on the file holds nothing older
// than what can be read. What the disk below keeps of
// the old file, a copy-on-write file system, a snapshot, a backup, is beyond its reach. An older copy of the
// whole file in its place is not noticed: nothing inside a file can prove that it is the newest.
package bolt
