package command

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"time"

	"github.com/spf13/cobra"

	"secretagent/agent"
	"secretagent/upstream"
)

func (a *app) keysCommand() *cobra.Command {
	return group("keys", "Manage the keyring of the built-in backend",
		`Make a keyring, and list, rotate and remove the keys that encrypt the database of the built-in
backend.
The keyring is a file of its own, upstream.local.keyring; that of upstream.etcd is changed by hand,
as the help on configuration says. rotate and remove need the database for themselves: stop the
agent first.`,
		a.keysInitCommand(), a.keysListCommand(), a.keysRotateCommand(), a.keysRemoveCommand())
}

func (a *app) keysInitCommand() *cobra.Command {
	var out output
	return out.of(&cobra.Command{
		Use:   "init FILE",
		Short: "Make a keyring",
		Long: `Make a keyring with one fresh key, for upstream.local.keyring or cache.sealed.keyring, and print
the id of the key. The agent makes a missing keyring by itself; this is for where it cannot: a
systemd credential, a Kubernetes Secret, a read-only container. FILE gets mode 0600. One that is
there already stays as it is. No configuration is read.`,
		Example: `  secretagent keys init /etc/secretagent/keyring.json`,
		Args:    cobra.ExactArgs(1),
		RunE: a.run(func(_ context.Context, args []string) error {
			id, err := agent.CreateKeyring(args[0])
			if errors.Is(err, fs.ErrExist) {
				return withHint(fmt.Errorf("%s is there already; a keyring is never overwritten", args[0]),
					"secretagent keys rotate adds a key to the one in use")
			}
			if err != nil {
				return err
			}
			return a.print(&out, map[string]any{"Key": id}, id+"\n")
		}),
	})
}

func (a *app) keysListCommand() *cobra.Command {
	var out output
	return out.of(&cobra.Command{
		Use:   "list",
		Short: "List the keys",
		Long: `List the keys of the keyring, never their material: which one encrypts new values, and how
many secrets and values each still protects. A key that protects none is no longer needed
by this database: "keys remove" takes it out.`,
		Example: `  secretagent keys list`,
		Args:    cobra.NoArgs,
		RunE: a.run(func(ctx context.Context, _ []string) error {
			return a.withKeys(ctx, func(keys []agent.Key) error {
				answer := make([]keyAnswer, 0, len(keys))
				t := newTable("KEY", "STATUS", "USE", "FIRST SEEN", "SECRETS", "VALUES")
				for _, k := range keys {
					primary := ""
					if k.Primary {
						primary = "primary"
					}
					created := wireTime(k.CreateTime)
					answer = append(answer, keyAnswer{k.ID, k.Primary, k.Status, created, k.Secrets, k.Values})
					t.add(plain, k.ID, k.Status, primary, created, fmt.Sprint(k.Secrets), fmt.Sprint(k.Values))
				}
				return a.print(&out, map[string]any{"Keys": answer}, t.text(false))
			})
		}),
	})
}

func (a *app) keysRotateCommand() *cobra.Command {
	var (
		out               output
		reencrypt, resume bool
	)
	cmd := &cobra.Command{
		Use:   "rotate",
		Short: "Add a key and encrypt with it from now on",
		Long: `Add a key to the keyring and encrypt with it from now on. Print its id. What was encrypted
before stays readable under its old key.

With --reencrypt everything is then rewritten under the new key, into a new file that holds
none of it under an old one. This may be interrupted, also by a crash: "keys rotate --reencrypt
--resume" goes on without adding another key. What a backup, a snapshot or a copy-on-write
disk keeps of the old file stays readable with the old key.`,
		Example: `  secretagent keys rotate
  secretagent keys rotate --reencrypt`,
		Args: cobra.NoArgs,
		RunE: a.run(func(ctx context.Context, _ []string) error {
			if resume && !reencrypt {
				return usagef("--resume belongs to --reencrypt")
			}
			return a.withStore(func(store *agent.Store) error {
				var id string
				var err error
				if resume {
					id, err = primaryKey(store)
				} else {
					id, err = store.RotateKey(ctx)
				}
				if err != nil {
					return err
				}
				if reencrypt {
					progress := func(done, total int) {
						if isTerminal(a.terminal) {
							a.printf("reencrypted %d of %d secrets", done, total)
						}
					}
					if err := store.Reencrypt(ctx, progress); err != nil {
						return withHint(fmt.Errorf("key %s is in use, but not everything is encrypted with it yet: %w", id, err),
							"go on with: secretagent keys rotate --reencrypt --resume")
					}
				}
				return a.print(&out, map[string]any{"Key": id, "Reencrypted": reencrypt}, id+"\n")
			})
		}),
	}
	cmd.Flags().BoolVar(&reencrypt, "reencrypt", false, "rewrite everything under the new key")
	cmd.Flags().BoolVar(&resume, "resume", false, "go on with a rewrite; add no key")
	return out.of(cmd)
}

func (a *app) keysRemoveCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "remove ID",
		Short: "Take a key that protects nothing out of the keyring",
		Long: `Take a key out of the keyring for good. It is refused for the key that encrypts new values, and
while the key protects anything in the database: "keys rotate --reencrypt" ends that. Backups
that were encrypted with the key can no longer be read without a copy of the old keyring, nor
can a sealed cache of the same keyring that no agent has written since the rotation.`,
		Example: `  secretagent keys remove 1234567890`,
		Args:    cobra.ExactArgs(1),
		RunE: a.run(func(ctx context.Context, args []string) error {
			return a.withStore(func(store *agent.Store) error {
				err := store.RemoveKey(ctx, args[0])
				if errors.Is(err, agent.ErrKeyInUse) {
					err = withHint(err, "secretagent keys list shows what each key protects")
				}
				return err
			})
		}),
	}
}

// keyAnswer is the JSON form of a key.
type keyAnswer struct {
	Key        string
	Primary    bool
	Status     string
	CreateTime string `json:",omitempty"`
	Secrets    int
	Values     int
}

// primaryKey returns the id of the key that encrypts new values.
func primaryKey(store *agent.Store) (id string, err error) {
	keys, err := store.Keys()
	for _, k := range keys {
		if k.Primary {
			id = k.ID
		}
	}
	return id, err
}

var errKeysOfTheCloud = usagef("the keyring that is managed here belongs to upstream.local; the keys of Alibaba Cloud KMS are managed there")

// withKeys calls fn with the keys, as the running agent tells them or, where none runs, from the files.
func (a *app) withKeys(ctx context.Context, fn func([]agent.Key) error) error {
	cfg, err := a.loadConfig()
	if err != nil {
		return err
	}
	if cfg.Upstream.Alibaba != nil {
		return errKeysOfTheCloud
	}
	var answer agent.KeysAnswer
	running, err := agent.OperateJSON(ctx, cfg, http.MethodGet, "/keys", nil, &answer)
	if err != nil {
		return err
	}
	if running {
		return fn(answer.Keys)
	}
	return a.withStore(func(store *agent.Store) error {
		keys, err := store.Keys()
		if err != nil {
			return err
		}
		return fn(keys)
	})
}

// withStore calls fn with the built-in backend, opened by this process alone.
func (a *app) withStore(fn func(*agent.Store) error) (err error) {
	cfg, err := a.loadConfig()
	if err != nil {
		return err
	}
	if cfg.Upstream.Local == nil {
		if cfg.Upstream.Etcd != nil {
			return withHint(usagef("keys of upstream.etcd are not changed by this command: other agents could not read what a key protects that they lack, and nothing here knows which keys they hold"),
				"change the keyring by hand: hand every agent a keyring with the new key first, and make it primary when all have it; secretagent help configuration says how")
		}
		return errKeysOfTheCloud
	}
	store, err := agent.OpenStore(cfg.Upstream.Local, a.logger())
	if err != nil {
		return err
	}
	defer func() { err = cmp.Or(err, store.Close()) }()
	return fn(store)
}

// wireTime formats t as the KMS API does; empty for the zero time.
func wireTime(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return upstream.WireTime(t)
}
