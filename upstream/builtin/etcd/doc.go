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
//	go store.Run(ctx) // purges secrets whose deletion window has passed
//
// # Reading and writing
//
// A read is linearizable: it sees every write that was acknowledged before it began, whoever made it.
// Record and value come in one transaction where the last read of the secret tells which value that is;
// otherwise the value is read at the revision of the record.
//
// A write reads first, at one revision, and is then one transaction, which compares the revisions of all
// that was read, also of what was not there. When others were faster, it begins anew. A scan compares that
// no key in its range is new or has changed, and of the first keys that none is gone.
//
// A write whose answer is lost, because the leader died or the time was over, fails with an
// [upstream.ErrUnavailable] that says that the outcome is unknown. Repeating a PutSecretValue is safe: the same
// version id with the same value changes nothing.
//
// The certificate of the agent is read for each connection, its password and the CA when a request fails:
// when they have changed, the connection is made anew.
//
// # Changes
//
// A watch tells of each change, also those of this store: a writer is answered after its own change was told,
// unless that takes more than a second. A watch that gives no sign of life for 10 to 15 s is taken to be
// broken; it goes on where it was, and where etcd has compacted that, everything is read anew, and
// [upstream.AnySecret] is told. Lists are made of what was told: they show every change of this store, and those of
// others some milliseconds later. While the watch is broken they fail.
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
//
// No part of a prefix has the name of one of these: one prefix may be below another, and their keys stay apart.
//
// Ciphertext is bound to prefix, name and version: it opens in no other place.
//
// # Keyring
//
// All agents are given the same keyring; none makes one. An agent whose keyring lacks a key serves what it
// can, says how many secrets it cannot read, leaves them out of lists, and brings in no key of its own
// before it has all keys that others use. [Store.ReadKeyring] takes a changed file over.
//
// # Limits
//
// etcd takes 1.5 MiB and 128 operations in a transaction. A secret with a hundred versions of the largest size
// stays below that in every operation, re-encryption included, which takes several transactions then. Only
// tags for fifty secrets at once whose records are of the largest size may not fit, and are refused as a
// whole. A used-up quota is told by its name, NOSPACE.
//
// # Design notes
//
// What was replaced or deleted stays in etcd until it is compacted and defragmented, which is for those who
// run etcd: an agent's role has no right to it.
//
// The watch is fed back into nothing that decides: a write reads all that it decides by. What is remembered
// of a transaction are names of keys only, to read them together the next time.
//
// The client of etcd reconnects silently, so that a broken watch looks like a quiet one; therefore etcd is
// asked for a sign of life every 5 s, which costs one small message.
package etcd
