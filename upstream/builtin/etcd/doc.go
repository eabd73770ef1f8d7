// Package etcd keeps the built-in Secrets Manager, which package builtin is, on a cluster of etcd that any
// number of agents share. None of them is special.
//
//	store, err := etcd.Open(etcd.Options{
//		Endpoints: []string{"https://etcd-0:2379", "https://etcd-1:2379", "https://etcd-2:2379"},
//		Prefix:    "/secretagent/prod/",
//		CAFile:    "/etc/secretagent/etcd-ca.crt",
//		Options:   builtin.Options{Keyring: "/run/secrets/keyring.json"},
//	})
//	if err != nil { … }
//	defer store.Close()
//	go store.Run(ctx) // shows that it runs, purges secrets whose deletion window has passed, and more
//
// # Reading and writing
//
// A read is linearizable: it sees every write that was acknowledged before it began, whoever made it.
// Record and value come in one transaction where the last read of the secret tells which value that is;
// otherwise the value is read at the revision of the record.
//
// A write is one transaction, which compares the revisions of all that the operation has read, also of what was not
// there. A scan compares that no key in its range is new or has changed, and of the first keys that none is gone.
// The operation is run on what was last seen of the records that it reads, in reads, in commits of this store and by the
// watch. That may save a request, and it decides nothing: where it is no longer so, and also where the operation fails
// or finds nothing to do, it is run again, on what is read now, at one revision. While the watch is broken it is run
// on what is read from the beginning, and so an outage is met before anything is sent that changes something.
//
// A read that a member does not answer within a third of [Options.Timeout] is asked of the next one. A write that was
// sent and whose answer is lost, because the leader died or the time was over, fails with an
// [upstream.ErrUnavailable] that says that the outcome is unknown. Repeating a PutSecretValue is safe: the same
// version id with the same value changes nothing.
//
// The certificate of the agent is read for each connection, its password and the CA when a request fails:
// when they have changed, the connection is made anew. So it is when etcd has forgotten a user who has asked nothing
// for some minutes.
//
// # Changes
//
// A change of this store is told when it is committed, before the writer is answered, and those of others are told by a
// watch. Of one secret, nothing is told after something newer. A watch that gives no sign of life for 10 to 15 s is
// taken to be broken; it goes on where it was. Where etcd has compacted that, or was restored from an older copy, so that
// its revisions have gone back, everything is read anew, and [upstream.AnySecret] is told. Lists are made of what was
// told: they show every change of this store, and those of others some milliseconds later. While the watch is broken they
// fail.
//
// # Keys at etcd
//
// PREFIX is [Options.Prefix]; nothing is read, written or watched that does not begin with it. A role with
// readwrite on it is enough:
//
//	etcdctl role add secretagent
//	etcdctl role grant-permission secretagent --prefix=true readwrite /secretagent/prod/
//	etcdctl user add secretagent --new-user-password …
//	etcdctl user grant-role secretagent secretagent
//
//	PREFIX secrets/ name                 sealed record
//	PREFIX values/ name 0x00 version id  sealed value
//	PREFIX keys/ key id, 4 bytes         sealed note of when the key was first used
//	PREFIX seeded/ name                  the seed of that name is done
//	PREFIX keystate/ note                sealed note of which key is primary, which is next, how far a re-encryption is
//	PREFIX agents/ id                    which keys a running agent holds, under a lease
//
// No part of a prefix has the name of one of these: one prefix may be below another, and their keys stay apart.
//
// Ciphertext is bound to prefix, name and version: it opens in no other place.
//
// # Keyring
//
// Each agent has its own copy of the keyring; none makes one, and [Store.ReadKeyring] takes a changed one over. An agent
// whose keyring lacks a key serves what it can, says how many secrets it cannot read and which keys it lacks, leaves
// those secrets out of lists, and brings in no key of its own before it has all keys that others use.
//
// Which key is primary is noted under the prefix, by the first write of all, and part of what each write compares: no
// write is sealed with a key that is primary no more. Whoever lacks the primary key cannot write.
//
// [Store.RotateKey] adds a key to the file that it has, and notes it as next. Each agent whose Run is at work shows
// which keys it holds, with a key under a lease of six pulses, 30 s, which needs no right but that on the prefix. As
// soon as none of them lacks the next key, whoever notices first makes it primary, in a transaction that compares the
// keys of all agents: one that joins in this moment is waited for, one that died is not once its lease has ended. Every
// pulse each agent looks; only while a rotation waits does it read the keys of the others.
//
// A re-encryption is a note too, which each of its transactions moves on: whoever begins it may die, and whoever
// notices goes on where it was. The note names the agent at work, and others leave it alone while that one shows that
// it runs. Two at once would only meet conflicts.
//
// # Limits
//
// etcd takes 1.5 MiB and 128 operations in a transaction. A secret with a hundred versions of the largest size
// stays below that in every operation, re-encryption included, which takes several transactions then. Only
// tags for fifty secrets at once whose records are of the largest size may not fit, and are refused as a
// whole. A used-up quota is told by its name, NOSPACE, with an outcome that is unknown: etcd says so of the write
// that has used it up, too.
//
// # Design notes
//
// What was replaced or deleted stays in etcd until it is compacted and defragmented, which is for those who
// run etcd: an agent's role has no right to it.
//
// A PutSecretValue and a GetSecretValue are one request each, where nobody else has changed the secret in the last
// milliseconds and its current version was read before. There are about 0.8 times as many a second as there are bare
// transactions of the same size, 0.7 to 0.95 as measured with 1 and with 16 callers, of a lone member on the two
// processors of the callers; BenchmarkAgainstBare shows it. What is left is that etcd tells the watch of each change,
// encryption, and the rules.
//
// What a transaction compares decides, and nothing else: neither what is remembered of records, nor the names of the
// keys that a transaction has read, which are remembered to read them together the next time.
//
// The client of etcd reconnects silently, so that a broken watch looks like a quiet one; therefore etcd is
// asked for a sign of life every 5 s, which costs one small message. A member whose kernel does not answer is
// given up after 1.5 to 2 s: then it, or another, is connected to within a second of its return, which TCP by
// itself would not do. One that is frozen, its kernel at work, is noticed by the missing sign of life.
package etcd
