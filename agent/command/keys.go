package command

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"secretagent/agent"
	"secretagent/upstream"
)

func (a *app) keysCommand() *cobra.Command {
	return group("keys", "Manage the keyring of the built-in backend",
		`Make a keyring, and list, rotate and remove the keys that encrypt what the built-in backend keeps.
The keyring is a file of its own, upstream.local.keyring or upstream.etcd.keyring. list, rotate and
remove ask the running agent, over upstream.local.api.socket or upstream.etcd.api.socket; where none
runs here, they do it themselves.`,
		a.keysInitCommand(), a.keysAddCommand(), a.keysListCommand(), a.keysRotateCommand(), a.keysRemoveCommand())
}

func (a *app) keysInitCommand() *cobra.Command {
	var out output
	return out.of(&cobra.Command{
		Use:   "init FILE",
		Short: "Make a keyring",
		Long: `Make a keyring with one fresh key, for upstream.local.keyring, upstream.etcd.keyring or
cache.sealed.keyring, and print the id of the key. The agent makes a missing keyring by itself;
this is for where it cannot: a systemd credential, a Kubernetes Secret, a read-only container,
agents that share etcd. FILE gets mode 0600. One that is there already stays as it is. No
configuration is read.`,
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

func (a *app) keysAddCommand() *cobra.Command {
	var out output
	return out.of(&cobra.Command{
		Use:   "add FILE",
		Short: "Add a key to a copy of the keyring",
		Long: `Add a fresh key to the keyring FILE, and print its id. This is for where "keys rotate" cannot
change the keyring because the agent has a copy of it: a systemd credential, a Kubernetes
Secret. Add the key to the original, hand that over anew, and then: with upstream.etcd, "keys
rotate" takes the key that was added; with upstream.local it is in use as soon as the agent has
it, and "keys rotate --reencrypt --resume" brings everything under it. No configuration is read.`,
		Example: `  secretagent keys add keyring.json`,
		Args:    cobra.ExactArgs(1),
		RunE: a.run(func(_ context.Context, args []string) error {
			id, err := agent.AddKey(args[0])
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
		Long: `List the keys of the keyring, never their material: which one encrypts new values, and how many
secrets and values each still protects. A key that protects none is no longer needed: "keys
remove" takes it out. With upstream.etcd, also keys that the keyring lacks and others use
(missing), and the one that a rotation waits with (next).`,
		Example: `  secretagent keys list`,
		Args:    cobra.NoArgs,
		RunE: a.run(func(ctx context.Context, _ []string) error {
			return a.withKeys(ctx, func(store agent.Keys) error {
				keys, err := store.List(ctx)
				if err != nil {
					return err
				}
				answer := make([]keyAnswer, 0, len(keys))
				t := newTable("KEY", "STATUS", "USE", "FIRST SEEN", "SECRETS", "VALUES")
				for _, k := range keys {
					use := ""
					switch {
					case k.Primary:
						use = "primary"
					case k.Next:
						use = "next"
					}
					created := wireTime(k.CreateTime)
					answer = append(answer, keyAnswer{k.ID, k.Primary, k.Next, k.Status, created, k.Secrets, k.Values})
					t.add(plain, k.ID, k.Status, use, created, fmt.Sprint(k.Secrets), fmt.Sprint(k.Values))
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
before stays readable under its old key. Agents go on serving meanwhile.

With upstream.etcd each agent has its own copy of the keyring. The key is added to the one here;
hand that file to the other agents, which take it up by themselves. The key is used as soon as
all agents that run have it: the command names those that it waits for. It can be left with
Ctrl-C: the agent that gets the key last completes the rotation. A key that "keys add" has added
is taken in place of another.

With --reencrypt everything is then rewritten under the new key. Agents do that in the
background, one at a time, and go on with it after a restart or a crash; the command shows how
far it is. Where no agent runs, the command does it, and the next start of an agent goes on with
what it has left. --resume adds no key: it rewrites under the one in use. With upstream.local
the database is then written anew, so that it holds none of it under an old key. What a backup,
a snapshot or a copy-on-write disk keeps of the old file, or etcd until it is compacted, stays
readable with the old key.`,
		Example: `  secretagent keys rotate
  secretagent keys rotate --reencrypt`,
		Args: cobra.NoArgs,
		RunE: a.run(func(ctx context.Context, _ []string) error {
			if resume && !reencrypt {
				return usagef("--resume belongs to --reencrypt")
			}
			return a.withKeys(ctx, func(keys agent.Keys) (err error) {
				var id string
				if resume {
					id, err = keys.Reencrypt(ctx)
				} else {
					id, err = keys.Rotate(ctx, reencrypt)
				}
				if err != nil {
					return err
				}
				if err := a.awaitKeys(ctx, keys); err != nil {
					return err
				}
				if reencrypt {
					if err := a.underOneKey(ctx, keys); err != nil {
						return err
					}
				}
				return a.print(&out, map[string]any{"Key": id, "Reencrypted": reencrypt}, id+"\n")
			})
		}),
	}
	cmd.Flags().BoolVar(&reencrypt, "reencrypt", false, "rewrite everything under the new key")
	cmd.Flags().BoolVar(&resume, "resume", false, "add no key: rewrite under the one in use")
	return out.of(cmd)
}

// awaitKeys waits until what was begun is done, and says what it waits for.
func (a *app) awaitKeys(ctx context.Context, keys agent.Keys) error {
	said, left := "", "nothing"
	var count func(done, total int)
	done := func() {}
	err := keys.Await(ctx, func(s agent.KeyState) {
		switch {
		case s.Rotation != nil:
			left = "key " + s.Rotation.Key + " is used as soon as all agents have it"
			waits := strings.Join(s.Rotation.Waiting, ", ")
			if waits != "" && waits != said {
				a.printf("key %s is in the keyring %s; hand that file to the agents that lack the key: %s", s.Rotation.Key, a.keyringOf(), waits)
			}
			said = waits
		case s.Reencryption != nil:
			left = "the re-encryption goes on in the background of an agent, or when one starts"
			if count == nil {
				count, done = a.counted("re-encrypting")
			}
			count(s.Reencryption.Done, s.Reencryption.Total)
		}
	})
	done()
	if errors.Is(err, context.Canceled) {
		return withHint(fmt.Errorf("not waited for the end: %s", left), "secretagent keys list and secretagent status show how far it is")
	}
	return err
}

// underOneKey returns an error unless everything is under the primary key.
func (a *app) underOneKey(ctx context.Context, keys agent.Keys) error {
	all, err := keys.List(ctx)
	if err != nil {
		return err
	}
	for _, k := range all {
		if !k.Primary && k.Secrets+k.Values > 0 {
			return withHint(fmt.Errorf("key %s still protects %s and %s", k.ID, many(k.Secrets, "secret"), many(k.Values, "value")),
				"the log of the agent names what cannot be read; what was created meanwhile with a key of its own is brought over by: secretagent keys rotate --reencrypt --resume")
		}
	}
	return nil
}

// keyringOf returns the path of the keyring in the configuration, for messages.
func (a *app) keyringOf() string {
	cfg, err := a.loadConfig()
	switch {
	case err == nil && cfg.Upstream.Etcd != nil:
		return string(cfg.Upstream.Etcd.Keyring)
	case err == nil && cfg.Upstream.Local != nil:
		return string(cfg.Upstream.Local.Keyring)
	}
	return ""
}

func (a *app) keysRemoveCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "remove ID [FILE]",
		Short: "Take a key that protects nothing out of the keyring",
		Long: `Take a key out of the keyring for good. It is refused for the key that encrypts new values, and
while the key protects anything: "keys rotate --reencrypt" ends that. With upstream.etcd, take
it out of the other agents' files afterwards, which refuse a file that lacks a key before. A
rotation that waits with the key is given up.

With FILE the key is taken out of that copy of the keyring, and nobody is asked: remove it
without FILE first.

Backups that were encrypted with the key can no longer be read without a copy of the old
keyring, nor can a sealed cache of the same keyring that no agent has written since: an agent
seals with the key that was primary when it started.`,
		Example: `  secretagent keys remove 1234567890`,
		Args:    cobra.RangeArgs(1, 2),
		RunE: a.run(func(ctx context.Context, args []string) error {
			if len(args) == 2 {
				return agent.DropKey(args[1], args[0])
			}
			return a.withKeys(ctx, func(keys agent.Keys) error {
				err := keys.Remove(ctx, args[0])
				switch cfg, _ := a.loadConfig(); {
				case err == nil && cfg != nil && cfg.Upstream.Etcd != nil:
					a.printf("key %s is out of the keyring %s; hand that file to the other agents, too", args[0], a.keyringOf())
				case errors.Is(err, agent.ErrKeyringKept):
					a.warningf("%s; take it out of the original with: secretagent keys remove %s FILE", errorLine(err), args[0])
					return nil
				case errors.Is(err, upstream.ErrUnsupported):
					return withHint(err, "secretagent keys list shows what each key protects")
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
	Next       bool `json:",omitzero"`
	Status     string
	CreateTime string `json:",omitempty"`
	Secrets    int
	Values     int
}

// withKeys calls fn with the keys of the built-in backend.
func (a *app) withKeys(ctx context.Context, fn func(agent.Keys) error) (err error) {
	cfg, err := a.loadConfig()
	if err != nil {
		return err
	}
	if cfg.Upstream.Alibaba != nil {
		return usagef("the keyring that is managed here belongs to upstream.local and upstream.etcd; the keys of Alibaba Cloud KMS are managed there")
	}
	keys, err := agent.OpenKeys(ctx, cfg, a.logger())
	if err != nil {
		return err
	}
	defer func() { err = cmp.Or(err, keys.Close()) }()
	return fn(keys)
}

// wireTime formats t as the KMS API does; empty for the zero time.
func wireTime(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return upstream.WireTime(t)
}
