package builtin

import (
	"context"
	"fmt"
	"time"

	"secretagent/upstream"
)

// Storage keeps what a [Store] knows: values under keys, in the key spaces of [Space]. It knows
// no rules, and whatever is a secret reaches it encrypted.
//
// An error of the storage itself is an [*upstream.Error]: an [upstream.ErrUnavailable] where the
// same may succeed later, [ErrClosed] after Close. Errors of the functions that it is given are
// returned as they are.
type Storage interface {
	// View runs fn on a snapshot: what was committed before View was called, and nothing later
	// than one moment. fn may run more than once.
	View(ctx context.Context, fn func(Reader) error) error

	// Update runs fn in a transaction and returns after what it has changed is committed: all of
	// it, and only if nothing that fn has read has changed since, or nothing where fn or the
	// storage fails. fn may run more than once, also on what is not so any more, and then its
	// outcome counts only in the last run. It must not change anything before it knows that
	// it will succeed: then a storage may put several into one transaction.
	//
	// When ctx ends first, its error is returned. What has begun by then may still be committed.
	Update(ctx context.Context, fn func(Writer) error) error

	// Observe has fn called with the notices of what is committed, those of a secret in the order of
	// the commits, and before Update returns to the one who has committed. It is called once, before
	// anything is written. fn does not block.
	Observe(fn func([]Notice))

	// Place tells where this is.
	Place() Place

	// Close ends everything. Calls that come later get [ErrClosed].
	Close() error
}

// Space is a key space of a [Storage].
type Space uint8

// The key spaces.
const (
	Records  Space  = iota // :: name → sealed record, see record.go
	Values                 // :: name 0x00 version id → sealed value
	Keys                   // :: key id, 4 bytes → sealed: when the key was first seen here
	Seeds                  // :: name → nothing: the seed of that name is done, see seed.go
	KeyNotes               // :: note → sealed: which key is primary, and what is under way; see keystate.go
	Agents                 // :: id of a running agent → which keys it holds; of a [Shared] storage, see agents.go
	Spaces   = iota        // how many there are
)

// String returns the name of the space.
func (s Space) String() string {
	return [...]string{"secrets", "values", "keys", "seeded", "keystate", "agents"}[s]
}

// Reader reads in a transaction. The bytes that it returns are valid until the end of the
// transaction and must not be changed; it keeps none that it is given.
type Reader interface {
	// Get returns the value of a key; nil when there is none.
	Get(space Space, key []byte) ([]byte, error)

	// Scan returns the keys of a space in order, from the first one on that is not less than from.
	// A write in the same transaction makes the cursor worthless; a new one may not see that write.
	Scan(space Space, from []byte) Cursor
}

// Prefetcher is a [Reader] that can read many keys at once, which [Reader.Get] then has.
type Prefetcher interface {
	Prefetch(space Space, keys [][]byte) error
}

// Cursor walks over keys.
type Cursor interface {
	// Next returns the next key and its value; a nil key at the end.
	Next() (key, value []byte, err error)
}

// Writer reads and writes in a transaction. What it has written Get also reads.
type Writer interface {
	Reader

	Put(space Space, key, value []byte) error
	Delete(space Space, key []byte) error

	// Wipe says that what the transaction deletes or replaces should leave nothing behind in what
	// the storage keeps, as soon as it can.
	Wipe() error

	// Announce hands a notice to the function of [Storage.Observe], once the transaction is committed.
	Announce(Notice)
}

// Shared is a Storage that others write to as well. It ignores [Writer.Announce]: its notices tell of
// records as they are now, whoever has changed them.
type Shared interface {
	Storage

	// CatchUp returns when the notices have told of all that was there when it was called, as far
	// as the storage knows, or an [upstream.ErrUnavailable] that says why they cannot.
	CatchUp(ctx context.Context) error

	// Present keeps value under key in the space [Agents] until the storage is closed, or is out of reach
	// for some [Shared.Pulse]: then the key is gone by itself. It is called once in each of them.
	Present(ctx context.Context, key, value []byte) error

	// Pulse is how often a running agent shows that it lives.
	Pulse() time.Duration
}

// Notice tells of what a transaction did, or of what others did.
type Notice struct {
	// Of a [Shared] storage.
	Records []SealedRecord
	All     bool // there are no other records, and any secret may have changed

	listed  []listed              // what the index is to know of secrets
	changed []upstream.SecretName // secrets whose readers see something else now
}

// SealedRecord is a record as it is stored.
type SealedRecord struct {
	Name   upstream.SecretName
	Sealed []byte // nil: it is gone
}

// Place is where a [Storage] keeps things.
type Place struct {
	Name    string // for people
	Binding string // ciphertext is bound to it: what was sealed elsewhere does not open here
	Shared  bool   // with other stores: it is a [Shared]
	Damage  string // what is told of damage: "%s" stands for what is damaged, and what to do follows
}

// Damaged returns an [ErrDamaged] that says what is wrong and what to do.
func (p Place) Damaged(format string, args ...any) error {
	return Errorf(ErrDamaged, p.Damage, fmt.Sprintf(format, args...))
}

// observe makes known what was committed.
func (s *Store) observe(notices []Notice) {
	var all Notice
	for _, n := range notices {
		if n.Records != nil || n.All {
			n = s.unseal(n)
		}
		all.listed = append(all.listed, n.listed...)
		all.changed = append(all.changed, n.changed...)
	}
	s.index.apply(all.listed)
	s.listeners.call(all.changed)
}
