package command

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"secretagent/agent"
	"secretagent/upstream"
)

func (a *app) secretCommand() *cobra.Command {
	return group("secret", "Manage secrets, on the built-in backend or in the cloud",
		`Manage secrets on the upstream of the configuration. For the built-in backend the running agent
is asked over the unix socket of its KMS API; when no agent runs, the database is opened
here. Only "create" makes a database, and its keyring, where there is none yet. With
upstream.alibaba the calls go to the cloud, and the running agent is told of what they have
changed, so that its next lookup asks for it.

A secret has versions, which never change, and labels, each on one version: ACSCurrent is
what applications read, ACSPrevious what they read before.`,
		a.secretCreateCommand(), a.secretPutCommand(), a.secretGetCommand(), a.secretListCommand(),
		a.secretDescribeCommand(), a.secretVersionsCommand(), a.secretStageCommand(), a.secretUpdateCommand(),
		a.secretEditCommand(), a.secretDiffCommand(), a.secretWatchCommand(),
		a.secretDeleteCommand(), a.secretRestoreCommand(), a.secretTagCommand(), a.secretUntagCommand(), a.secretPolicyCommand(),
		a.secretRotateCommand(),
		a.secretImportCommand(), a.secretExportCommand(),
		a.secretRandomPasswordCommand(),
	)
}

// withManager calls fn with the upstream of the configuration. It makes no files.
func (a *app) withManager(ctx context.Context, fn func(upstream.Manager) error) error {
	return a.withFiles(ctx, agent.ExistingFiles, fn)
}

// withFiles is withManager for a command that may make files.
func (a *app) withFiles(ctx context.Context, files agent.Files, fn func(upstream.Manager) error) (err error) {
	cfg, err := a.loadConfig()
	if err != nil {
		return err
	}
	m, closeManager, err := agent.OpenManager(ctx, cfg, a.logger(), files)
	if errors.Is(err, upstream.ErrAccessDenied) && cfg.Upstream.Local != nil {
		return withHint(err, "ask as that user, or as root")
	} else if err != nil {
		return err
	}
	defer func() { err = cmp.Or(err, closeManager()) }()
	if cfg.Upstream.Alibaba != nil { // the running agent does not see what we write
		m = upstream.TellWrites(m, func(ctx context.Context, name upstream.SecretName) { a.tellAgent(ctx, cfg, name) })
	}
	err = fn(m)
	api, _ := cfg.Upstream.API()
	if e, ok := errors.AsType[*upstream.Error](err); ok && cfg.Upstream.Alibaba == nil && e.Endpoint == string(api.Socket) && e.Endpoint != "" &&
		e.RequestID == "" && errors.Is(err, upstream.ErrUnavailable) {
		return withHint(err, hintHangs)
	}
	return err
}

// asking is what takes long where the upstream does.
const asking = "asking the upstream"

// managed returns what fn reads from the upstream of the configuration.
func managed[T any](ctx context.Context, a *app, fn func(upstream.Manager) (T, error)) (value T, err error) {
	err = a.withManager(ctx, func(m upstream.Manager) (err error) {
		defer a.progress(asking)()
		value, err = fn(m)
		return err
	})
	return value, err
}

// runOn makes a verb out of fn, which gets the secret that the first argument names, as a whole,
// and the other arguments.
func (a *app) runOn(fn func(ctx context.Context, name upstream.SecretName, args []string) error) func(*cobra.Command, []string) error {
	return a.run(func(ctx context.Context, args []string) error {
		ref, err := upstream.ParseSecretRef(args[0])
		if err != nil {
			return usageError{err}
		}
		if ref.VersionStage != "" {
			return usagef("%s: this verb takes a secret as a whole: leave :%s away", args[0], ref.VersionStage)
		}
		return fn(ctx, ref.SecretName, args[1:])
	})
}

// parsePairs reads KEY=VALUE arguments.
func parsePairs(what string, args []string) ([]upstream.Tag, error) {
	tags := make([]upstream.Tag, 0, len(args))
	for _, arg := range args {
		k, v, ok := strings.Cut(arg, "=")
		if !ok || k == "" {
			return nil, usagef("%s %q: must be KEY=VALUE", what, arg)
		}
		if slices.ContainsFunc(tags, func(t upstream.Tag) bool { return t.Key == k }) {
			return nil, usagef("%s %s: is given twice", what, k)
		}
		tags = append(tags, upstream.Tag{Key: k, Value: v})
	}
	return tags, nil
}

func (a *app) secretCreateCommand() *cobra.Command {
	var (
		out     output
		in      upstream.CreateSecretInput
		tagArgs []string
		policy  string
	)
	cmd := &cobra.Command{
		Use:   "create NAME",
		Short: "Create a secret with its first version",
		Long: `Create a secret with its first version, which gets the label ACSCurrent. Print name, version id
and labels. On a terminal the value is asked for, and not shown. Otherwise it is taken byte by byte
from standard input, or from the file of --data-file, a final newline included.

With --data-type binary the bytes are stored as base64, which is what Alibaba's SDKs and
controllers expect of a binary secret. A value that is base64 already is stored as it is.

Without --version-id the id is made from the time, such as 20260131T120000.123Z.`,
		Example: `  secretagent secret create demo/db --version-id v1 --data-file value.json
  secretagent secret create demo/keystore --data-type binary --data-file keystore.p12
  secretagent secret random-password | secretagent secret create demo/pw --data-file -`,
		Args: cobra.ExactArgs(1),
	}
	value := newValueFlags(cmd, "`id` of the first version (default from the time)")
	cmd.Flags().StringVar(&in.EncryptionKeyID, "key-id", "", "`id` of the key that encrypts the secret (default chosen by the upstream)")
	cmd.Flags().StringVar(&in.DKMSInstanceID, "instance-id", "", "`id` of the KMS instance that the secret belongs to")
	cmd.Flags().StringVar(&policy, "policy-file", "", "`file` with the policy of a secret in a KMS instance, JSON; - for standard input")
	cmd.Flags().StringVar(&in.Description, "description", "", "`text` that says what the secret is for")
	cmd.Flags().StringArrayVar(&tagArgs, "tag", nil, "tag as `KEY=VALUE`; may be repeated")
	cmd.RunE = a.runOn(func(ctx context.Context, name upstream.SecretName, _ []string) (err error) {
		in.SecretName, in.SecretDataType = name, value.dataType
		if in.VersionID, err = value.versionID(time.Now()); err != nil {
			return err
		}
		if in.Tags, err = parsePairs("--tag", tagArgs); err != nil {
			return err
		}
		if policy == "-" && value.file == "-" {
			return usagef("--policy-file and --data-file cannot both be standard input")
		}
		if policy != "" {
			if in.Policy, err = a.readPolicy(policy); err != nil {
				return err
			}
		}
		if in.SecretData, err = value.read(a); err != nil {
			return err
		}
		return a.withFiles(ctx, agent.MissingFiles, func(m upstream.Manager) error {
			defer a.progress(asking)()
			if _, err := m.CreateSecret(ctx, in); errors.Is(err, upstream.ErrExists) {
				return withHint(err, "add a version to it with: secretagent secret put %s", name)
			} else if err != nil {
				return err
			}
			return a.printVersion(&out, name, upstream.SecretVersion{VersionID: in.VersionID, VersionStages: []upstream.VersionStage{upstream.ACSCurrent}})
		})
	})
	return out.of(cmd)
}

func (a *app) secretPutCommand() *cobra.Command {
	var (
		out    output
		stages []string
	)
	cmd := &cobra.Command{
		Use: "put NAME", SuggestFor: []string{"set", "add", "write"},
		Short: "Add a version to a secret",
		Long: `Add a version to a secret and move ACSCurrent to it, or the labels of --stage instead. Print
name, version id and labels. On a terminal the value is asked for, and not shown. Otherwise it is
taken byte by byte from standard input, or from the file of --data-file, a final newline included.

With --data-type binary the bytes are stored as base64, which is what Alibaba's SDKs and
controllers expect of a binary secret. A value that is base64 already is stored as it is.

Without --version-id the id is made from the time, such as 20260131T120000.123Z. The same id
with the same value changes nothing, with another value it is refused: scripts that may be
repeated should give an id.`,
		Example: `  secretagent secret put demo/db --version-id v2 --data-file value.json
  secretagent secret put demo/db --stage Pending --data-file - <value.json`,
		Args: cobra.ExactArgs(1),
	}
	value := newValueFlags(cmd, "`id` of the version (default from the time)")
	cmd.Flags().StringArrayVar(&stages, "stage", nil, "`label` to move to the version (default ACSCurrent); may be repeated")
	cmd.RunE = a.runOn(func(ctx context.Context, name upstream.SecretName, _ []string) (err error) {
		in := upstream.PutSecretValueInput{SecretName: name, SecretDataType: value.dataType}
		if in.VersionID, err = value.versionID(time.Now()); err != nil {
			return err
		}
		for _, s := range stages {
			stage := upstream.VersionStage(s)
			if err := stage.Validate(); err != nil {
				return usageError{fmt.Errorf("--stage: %w", err)}
			}
			in.VersionStages = append(in.VersionStages, stage)
		}
		if in.SecretData, err = value.read(a); err != nil {
			return err
		}
		return a.withManager(ctx, func(m upstream.Manager) error {
			defer a.progress(asking)()
			version, err := m.PutSecretValue(ctx, in)
			switch {
			case errors.Is(err, upstream.ErrExists):
				return withHint(err, "a version never changes: choose another --version-id")
			case errors.Is(err, upstream.ErrNotFound):
				return withHint(err, "make it with: secretagent secret create %s", name)
			case err != nil:
				return err
			}
			return a.printVersion(&out, name, version)
		})
	})
	return out.of(cmd)
}

// printVersion prints what a write made.
func (a *app) printVersion(out *output, name upstream.SecretName, v upstream.SecretVersion) error {
	answer := struct {
		SecretName upstream.SecretName
		secretVersion
	}{name, versionOf(v)}
	line := fmt.Sprintf("%s %s %s", name, v.VersionID, joinStages(v.VersionStages))
	return a.print(out, answer, strings.TrimRight(line, " ")+"\n")
}

// secretVersion is the JSON form of a version.
type secretVersion struct {
	VersionID     upstream.VersionID `json:"VersionId"`
	VersionStages []upstream.VersionStage
	CreateTime    string `json:",omitempty"`
}

func versionOf(v upstream.SecretVersion) secretVersion {
	stages := append([]upstream.VersionStage{}, v.VersionStages...) // not nil, which is null in JSON
	return secretVersion{v.VersionID, stages, wireTime(v.CreateTime)}
}

func joinStages(stages []upstream.VersionStage) string {
	texts := make([]string, len(stages))
	for i, s := range stages {
		texts[i] = string(s)
	}
	return strings.Join(texts, ",")
}

func (a *app) secretGetCommand() *cobra.Command {
	var flags *readFlags
	cmd := &cobra.Command{
		Use: "get NAME[:Label]", SuggestFor: []string{"show", "read", "cat"},
		Short: "Print the value of a secret from the upstream itself",
		Long: `Print the value of a version of a secret byte by byte (with a newline after it on a terminal
only), read from the upstream itself. Without label and --version-id the current version is
meant. Of a binary secret the bytes are printed that its base64 stands for. With --output json
the answer is the JSON of GetSecretValue, which has the base64.

"secretagent get" asks the endpoint of the running agent instead, as an application would.`,
		Example: `  secretagent secret get demo/db
  secretagent secret get demo/db:ACSPrevious --field password
  secretagent secret get demo/db --version-id v1 --output json`,
		Args: cobra.ExactArgs(1),
		RunE: a.run(func(ctx context.Context, args []string) error {
			ref, err := flags.ref(args[0])
			if err != nil {
				return err
			}
			return a.withManager(ctx, func(m upstream.Manager) error {
				done := a.progress(asking)
				value, err := m.GetSecretValue(ctx, ref)
				done() // before anything is printed
				switch {
				case err != nil:
					return err
				case flags.out.json():
					return a.write(upstream.GetSecretValueJSON(&value))
				case flags.field == "":
					return a.printRaw(value.RevealBytes())
				}
				part, err := fieldOf(ref, value.SecretData, flags.field)
				if err != nil {
					return err
				}
				return a.printRaw(part)
			})
		}),
	}
	flags = newReadFlags(cmd)
	return cmd
}

func (a *app) secretStageCommand() *cobra.Command {
	var to, from string
	cmd := &cobra.Command{
		Use:   "stage NAME LABEL",
		Short: "Attach, move or remove a label",
		Long: `Attach a label to a version (--to), move it from one version to another (--to and --from), or
remove it (--from). When ACSCurrent moves, the version that had it gets ACSPrevious.
ACSCurrent and ACSPrevious can be moved but not removed.`,
		Example: `  secretagent secret stage demo/db ACSCurrent --to v1     # roll back
  secretagent secret stage demo/db Pending --from v2`,
		Args: cobra.ExactArgs(2),
		RunE: a.runOn(func(ctx context.Context, name upstream.SecretName, args []string) error {
			in := upstream.UpdateSecretVersionStageInput{
				SecretName: name, VersionStage: upstream.VersionStage(args[0]),
				MoveToVersion: upstream.VersionID(to), RemoveFromVersion: upstream.VersionID(from),
			}
			if err := in.VersionStage.Validate(); err != nil {
				return usageError{err}
			}
			if to == "" && from == "" {
				return usagef("give --to VERSION to attach or move the label, --from VERSION to remove it")
			}
			for _, id := range []upstream.VersionID{in.MoveToVersion, in.RemoveFromVersion} {
				if err := id.Validate(); id != "" && err != nil {
					return usageError{err}
				}
			}
			return a.withManager(ctx, func(m upstream.Manager) error { return m.UpdateSecretVersionStage(ctx, in) })
		}),
	}
	cmd.Flags().StringVar(&to, "to", "", "`version` that gets the label")
	cmd.Flags().StringVar(&from, "from", "", "`version` that loses the label")
	return cmd
}

func (a *app) secretUpdateCommand() *cobra.Command {
	var description string
	cmd := &cobra.Command{
		Use:     "update NAME",
		Short:   "Change the description of a secret",
		Long:    `Change the description of a secret. Versions and labels stay as they are.`,
		Example: `  secretagent secret update demo/db --description "the database of the demo"`,
		Args:    cobra.ExactArgs(1),
	}
	cmd.RunE = a.runOn(func(ctx context.Context, name upstream.SecretName, _ []string) error {
		if !cmd.Flags().Changed("description") {
			return usagef("nothing to change: give --description")
		}
		return a.withManager(ctx, func(m upstream.Manager) error {
			return m.UpdateSecret(ctx, upstream.UpdateSecretInput{SecretName: name, Description: &description})
		})
	})
	cmd.Flags().StringVar(&description, "description", "", "new `text`; empty removes it")
	return cmd
}

func (a *app) secretRandomPasswordCommand() *cobra.Command {
	var in upstream.RandomPasswordInput
	cmd := &cobra.Command{
		Use:   "random-password",
		Short: "Print a random password",
		Long: `Print a random password and nothing else, drawn by the upstream. Nothing is stored. A newline
is printed after it on a terminal only.`,
		Example: `  secretagent secret random-password --length 40 --exclude-punctuation
  secretagent secret random-password | secretagent secret put demo/pw --data-file -`,
		Args: cobra.NoArgs,
		RunE: a.run(func(ctx context.Context, _ []string) error {
			if in.PasswordLength < 8 || in.PasswordLength > 128 {
				return usagef("--length must be from 8 to 128")
			}
			password, err := managed(ctx, a, func(m upstream.Manager) (upstream.SecretData, error) { return m.GetRandomPassword(ctx, in) })
			if errors.Is(err, agent.ErrNoDatabase) { // nor does it need one
				password, err = in.Draw()
			}
			if err != nil {
				return err
			}
			return a.printRaw(password.Reveal())
		}),
	}
	f := cmd.Flags()
	f.IntVar(&in.PasswordLength, "length", 32, "number of `characters`, 8 to 128")
	f.StringVar(&in.ExcludeCharacters, "exclude-characters", "", "`characters` that must not be in it")
	f.BoolVar(&in.ExcludeLowercase, "exclude-lowercase", false, "no lower-case letters")
	f.BoolVar(&in.ExcludeUppercase, "exclude-uppercase", false, "no upper-case letters")
	f.BoolVar(&in.ExcludeNumbers, "exclude-numbers", false, "no digits")
	f.BoolVar(&in.ExcludePunctuation, "exclude-punctuation", false, "no punctuation")
	f.BoolVar(&in.RequireEachIncludedType, "require-each-type", false, "at least one character of every kind that is not excluded")
	return cmd
}
