package builtin

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"secretagent/upstream"
	"secretagent/upstream/keyfile"
)

// Store is the built-in Secrets Manager. Make one with [Open]; all methods are safe for
// concurrent use.
type Store struct {
	opts    Options
	log     *slog.Logger
	storage Storage
	place   Place

	keyringMade bool // by Open

	keys   atomic.Pointer[keys]
	rotate sync.Mutex // one change of the keyring at a time

	id            string                   // of this store among the agents of a shared storage
	keyState      atomic.Pointer[KeyState] // as it was last seen
	keysBell      chan struct{}            // rung when there is news of keys to tell or to look for, and
	reencryptBell chan struct{}            // when a re-encryption is noted; each has room for one

	quit      chan struct{} // closed by Close
	closeOnce sync.Once
	closeErr  error

	index      *index
	listeners  listeners
	unreadable unreadable // of a shared storage
	purged     atomic.Uint64
}

var _ upstream.Manager = (*Store)(nil)

// Open makes a [Store] of what storage keeps, and checks every secret of it. A keyring that does not
// exist is made, unless there are secrets already. The caller closes the Store, and with it the storage; when
// Open fails, the storage stays open.
//
// It fails, having changed nothing, when the options or the keyring's permissions are bad; with
// [ErrDamaged] when what is kept is not what was written; with [ErrKeyLost] when the keyring lacks a key that
// is in use, also when it is missing altogether while there are secrets.
func Open(storage Storage, opts Options) (*Store, error) {
	if err := opts.Validate(); err != nil {
		return nil, err
	}
	opts = opts.withDefaults()
	s := &Store{
		opts:    opts,
		log:     opts.Logger,
		storage: storage,
		place:   storage.Place(),
		quit:    make(chan struct{}),
		index:   newIndex(),

		id:            rand.Text(),
		keysBell:      make(chan struct{}, 1),
		reencryptBell: make(chan struct{}, 1),
	}
	s.keyState.Store(&KeyState{})
	storage.Observe(s.observe)
	keyring, err := newKeys(keyfile.ReadKeyring(opts.Keyring, opts.KeyringIsCredential))
	if errors.Is(err, fs.ErrNotExist) && !s.place.Shared {
		err = nil // load may make it
	}
	if err != nil {
		return nil, err
	}
	if !s.place.Shared {
		err = s.load(keyring)
	} else if err == nil {
		s.keys.Store(keyring) // what is there is checked when it is read
	}
	if err != nil {
		return nil, err
	}
	if s.opts.Emulate.InstanceID != "" {
		s.log.Info("a KMS instance is emulated: policies of secrets are kept and have no effect", "hint", "restrict the access keys of the API instead")
	}
	return s, nil
}

// Format prints where the secrets are, for every verb. Otherwise fmt would, for some verbs, follow
// the pointers into key material and into the memory of the storage, which has no end it could see.
func (s *Store) Format(f fmt.State, _ rune) {
	_, _ = fmt.Fprintf(f, "builtin.Store(%s)", s.place.Name)
}

// load makes the keyring usable with what is there and checks every secret.
func (s *Store) load(keyring *keys) error {
	ctx := context.Background()
	if keyring == nil {
		used := false
		err := s.storage.View(ctx, func(r Reader) error {
			first, _, err := r.Scan(Records, nil).Next()
			used = first != nil
			return err
		})
		if err != nil {
			return err
		}
		if used {
			return Errorf(ErrKeyLost,
				"holds secrets, but the keyring %s does not exist; put the keyring back, or move the database away to start afresh", s.opts.Keyring)
		}
		if keyring, err = s.makeKeyring(); err != nil {
			return err
		}
	}
	s.keys.Store(keyring)
	var forgotten []uint32
	err := s.view(ctx, call{}, func(t *tx) (err error) {
		forgotten, err = s.verify(t)
		s.index.apply(t.listed)
		return err
	})
	if err != nil || s.opts.ReadOnly {
		return err
	}
	if err := s.noteKeys(forgotten); err != nil {
		return err
	}
	s.refreshKeyState()
	return nil
}

func (s *Store) makeKeyring() (*keys, error) {
	if s.opts.MayMakeKeyring != nil {
		if err := s.opts.MayMakeKeyring(); err != nil {
			return nil, err
		}
	}
	ring, created, err := keyfile.OpenKeyring(s.opts.Keyring, s.opts.KeyringIsCredential)
	made, err := newKeys(ring, err)
	if s.keyringMade = created; created {
		s.log.Info("keyring created: keep it, without it nobody can read the database", "path", s.opts.Keyring, "key", formatKeyID(made.primary))
	}
	return made, err
}

// KeyringMade reports whether [Open] has made the keyring.
func (s *Store) KeyringMade() bool { return s.keyringMade }

// Purged returns how many secrets were removed after their deletion window, since Open.
func (s *Store) Purged() uint64 { return s.purged.Load() }

// sleep reports whether neither ctx nor the [Store] ended meanwhile.
func (s *Store) sleep(ctx context.Context, d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case <-ctx.Done():
	case <-s.quit:
	}
	return false
}

// Close closes the storage. What has begun is finished, and all later calls get [ErrClosed]. Calling
// it again returns what it returned the first time.
func (s *Store) Close() error {
	s.closeOnce.Do(func() {
		close(s.quit)
		s.closeErr = s.storage.Close()
	})
	return s.closeErr
}
