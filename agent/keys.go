package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"secretagent/agent/config"
	"secretagent/agent/endpoint"
	"secretagent/upstream"
	"secretagent/upstream/builtin"
	"secretagent/upstream/builtin/etcd"
	"secretagent/upstream/keyfile"
	"secretagent/upstream/kmsserver"
)

type (
	// Key is a key of the keyring of a built-in backend.
	Key = builtin.Key

	// KeyState is what the keys of a built-in backend are to do.
	KeyState = builtin.KeyState
)

// Keys manages the keys of a built-in backend for a command.
type Keys interface {
	// List returns the keys, and what each of them protects.
	List(ctx context.Context) ([]Key, error)

	// Rotate begins a rotation to a new key and returns its id; see [builtin.Store.RotateKey].
	Rotate(ctx context.Context, reencrypt bool) (id string, err error)

	// Reencrypt begins to bring everything under the primary key, and returns its id.
	Reencrypt(ctx context.Context) (id string, err error)

	// Await returns when no rotation waits for agents and no re-encryption is under way. It does what there is to do
	// where no agent does it. tell is called with how far it is, again and again.
	Await(ctx context.Context, tell func(KeyState)) error

	// Remove takes out a key that protects nothing; see [builtin.Store.RemoveKey].
	Remove(ctx context.Context, id string) error

	Close() error
}

// OpenKeys returns what manages the keys of the backend of cfg, which is a built-in one: the agent that runs with it
// or, where none does, this process. It makes no files. The caller closes it.
func OpenKeys(ctx context.Context, cfg *config.Config, log *slog.Logger) (Keys, error) {
	api, _ := cfg.Upstream.API()
	if running, err := answers(ctx, string(api.Socket)); err != nil {
		return nil, err
	} else if running {
		return keysOfAgent{cfg}, nil
	}
	if local := cfg.Upstream.Local; local != nil {
		store, err := builtinKind{local}.openUnused(ctx, log, ExistingFiles)
		if err != nil {
			return nil, err
		}
		return keysOfStore{store}, nil
	}
	store, err := etcd.Open(etcdOptions(cfg.Upstream.Etcd, log))
	if err != nil {
		return nil, inSection("upstream.etcd", err)
	}
	return keysOfStore{store}, nil
}

// keyStore is the part of a built-in backend that has the keys.
type keyStore interface {
	Keys(ctx context.Context) ([]builtin.Key, error)
	KeyState() builtin.KeyState
	ReadKeyState(ctx context.Context) (builtin.KeyState, error)
	RotateKey(ctx context.Context, reencrypt bool) (string, error)
	CompleteRotation(ctx context.Context) error
	BeginReencrypt(ctx context.Context) (string, error)
	Reencrypt(ctx context.Context, progress func(done, total int)) error
	RemoveKey(ctx context.Context, id string) error
	Close() error
}

// awaitKeys is how often Await looks.
const awaitKeys = 300 * time.Millisecond

// keysOfStore are those of a backend that this process has opened.
type keysOfStore struct{ store keyStore }

func (k keysOfStore) List(ctx context.Context) ([]Key, error) { return k.store.Keys(ctx) }

func (k keysOfStore) Rotate(ctx context.Context, reencrypt bool) (string, error) {
	return k.store.RotateKey(ctx, reencrypt)
}

func (k keysOfStore) Reencrypt(ctx context.Context) (string, error) {
	return k.store.BeginReencrypt(ctx)
}

func (k keysOfStore) Await(ctx context.Context, tell func(KeyState)) error {
	state, err := awaitState(ctx, tell, func(s KeyState) bool { return s.Rotation == nil }, func() (KeyState, error) {
		if err := k.store.CompleteRotation(ctx); err != nil {
			return KeyState{}, err
		}
		return k.store.ReadKeyState(ctx)
	})
	if err != nil || state.Reencryption == nil {
		return err
	}
	return k.store.Reencrypt(ctx, func(done, total int) {
		tell(KeyState{Primary: state.Primary, Reencryption: &builtin.Reencryption{Key: state.Primary, Done: done, Total: total}})
	})
}

func (k keysOfStore) Remove(ctx context.Context, id string) error { return k.store.RemoveKey(ctx, id) }

func (k keysOfStore) Close() error { return k.store.Close() }

// keysOfAgent are those of the agent that runs with a configuration.
type keysOfAgent struct{ cfg *config.Config }

func (k keysOfAgent) List(ctx context.Context) ([]Key, error) {
	answer, err := k.ask(ctx, http.MethodGet, pathKeys, nil)
	return answer.Keys, err
}

func (k keysOfAgent) Rotate(ctx context.Context, reencrypt bool) (string, error) {
	answer, err := k.ask(ctx, http.MethodPost, pathKeysRotate, url.Values{"reencrypt": {strconv.FormatBool(reencrypt)}})
	return answer.Key, err
}

func (k keysOfAgent) Reencrypt(ctx context.Context) (string, error) {
	answer, err := k.ask(ctx, http.MethodPost, pathKeysReencrypt, nil)
	return answer.Key, err
}

func (k keysOfAgent) Await(ctx context.Context, tell func(KeyState)) error {
	_, err := awaitState(ctx, tell, func(s KeyState) bool { return s.Rotation == nil && s.Reencryption == nil }, func() (KeyState, error) {
		answer, err := k.ask(ctx, http.MethodGet, pathKeysState, nil)
		return answer.KeyState, err
	})
	return err
}

func (k keysOfAgent) Remove(ctx context.Context, id string) error {
	answer, err := k.ask(ctx, http.MethodPost, pathKeysRemove, url.Values{"key": {id}})
	if err == nil && answer.Kept != "" {
		err = &upstream.Error{Message: answer.Kept, Err: builtin.ErrKeyringKept}
	}
	return err
}

func (k keysOfAgent) Close() error { return nil }

func (k keysOfAgent) ask(ctx context.Context, method, path string, query url.Values) (answer keysAnswer, err error) {
	running, err := askAgentJSON(ctx, k.cfg, method, path, query, &answer)
	if err == nil && !running {
		err = &upstream.Error{Message: "the agent has ended meanwhile", Err: upstream.ErrUnavailable}
	}
	return answer, err
}

// awaitState returns the first state that is done.
func awaitState(ctx context.Context, tell func(KeyState), done func(KeyState) bool, look func() (KeyState, error)) (KeyState, error) {
	for {
		state, err := look()
		if err != nil || done(state) {
			return state, err
		}
		tell(state)
		select {
		case <-time.After(awaitKeys):
		case <-ctx.Done():
			return state, ctx.Err()
		}
	}
}

// What an agent answers whoever runs it about its keys; see [operation].
const (
	pathKeys          = "/keys"
	pathKeysState     = "/keys/state"
	pathKeysRotate    = "/keys/rotate"
	pathKeysReencrypt = "/keys/reencrypt"
	pathKeysRemove    = "/keys/remove"
)

// keysAnswer is such an answer: what was asked for of it.
type keysAnswer struct {
	Keys     []Key  `json:",omitempty"`
	Key      string `json:",omitzero"` // that is next or primary
	Kept     string `json:",omitzero"` // why a key that was removed stays in the file
	KeyState KeyState
}

func keyOperations(store keyStore) map[string]operation {
	do := func(fn func(context.Context, url.Values, *keysAnswer) error) operation {
		return func(ctx context.Context, query url.Values) (*kmsserver.Operated, error) {
			var answer keysAnswer
			err := fn(ctx, query, &answer)
			return operated(answer, err)
		}
	}
	return map[string]operation{
		"GET " + pathKeys: do(func(ctx context.Context, _ url.Values, a *keysAnswer) (err error) {
			a.Keys, err = store.Keys(ctx)
			return err
		}),
		"GET " + pathKeysState: do(func(ctx context.Context, _ url.Values, a *keysAnswer) (err error) {
			a.KeyState, err = store.ReadKeyState(ctx)
			return err
		}),
		"POST " + pathKeysRotate: do(func(ctx context.Context, query url.Values, a *keysAnswer) (err error) {
			a.Key, err = store.RotateKey(ctx, query.Get("reencrypt") == "true")
			return err
		}),
		"POST " + pathKeysReencrypt: do(func(ctx context.Context, _ url.Values, a *keysAnswer) (err error) {
			a.Key, err = store.BeginReencrypt(ctx)
			return err
		}),
		"POST " + pathKeysRemove: do(func(ctx context.Context, query url.Values, a *keysAnswer) error {
			err := store.RemoveKey(ctx, query.Get("key"))
			if errors.Is(err, ErrKeyringKept) {
				a.Kept = err.Error()
				return nil
			}
			return err
		}),
	}
}

// problems tells of keys that this agent lacks.
func (b builtinCommon) problems() []endpoint.Problem {
	lacking := b.builtinStore.KeyState().Lacking
	if len(lacking) == 0 {
		return nil
	}
	reason := "lacks keys that other agents use: " + strings.Join(lacking, ", ") + "; put the keyring in its place that they have"
	return []endpoint.Problem{{Subject: "keyring", Reason: reason, Private: true}}
}

// collectKeys makes the metrics of the keys.
func collectKeys(s sink, k KeyState) {
	waiting, since := 0, 0.0
	if r := k.Rotation; r != nil {
		waiting, since = len(r.Waiting), max(0, time.Since(r.Since).Seconds())
	}
	left := 0
	if r := k.Reencryption; r != nil {
		left = r.Total - r.Done
	}
	s.gauge("secretagent_keys_lacking", "Keys that others use here and that the keyring lacks.", float64(len(k.Lacking)))
	s.gauge("secretagent_keys_rotation_agents", "Agents that a rotation waits for, because they lack its key.", float64(waiting))
	s.gauge("secretagent_keys_rotation_seconds", "Time for which a rotation has been waiting for agents; 0 while none is.", since)
	s.gauge("secretagent_keys_reencryption_secrets", "Secrets that the re-encryption under way has not looked at yet.", float64(left))
}

// AddKey adds a fresh key to a keyring file that no agent uses, such as the original of a Secret, and returns its id.
func AddKey(path string) (id string, err error) {
	ring, err := keyfile.ReadKeyring(path, false)
	if err == nil {
		ring, err = ring.Extend()
	}
	if err != nil {
		return "", fmt.Errorf("keyring %w", err)
	}
	return strconv.FormatUint(uint64(ring.Primary()), 10), nil
}

// DropKey takes a key out of a keyring file that no agent uses.
func DropKey(path, id string) error {
	ring, err := keyfile.ReadKeyring(path, false)
	if err != nil {
		return fmt.Errorf("keyring %w", err)
	}
	key, err := strconv.ParseUint(id, 10, 32)
	if err != nil {
		return fmt.Errorf("%q is not the id of a key, which is a decimal number", id)
	}
	_, err = ring.Remove(uint32(key), ring.Primary())
	return err
}
