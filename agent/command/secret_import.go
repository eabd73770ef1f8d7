package command

import (
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

// maxImport bounds a file of secrets.
const maxImport = 16 << 20

// fileFlags are those of a verb that reads or writes a file of secrets.
type fileFlags struct {
	prefix string
	format choice
}

func newFileFlags(cmd *cobra.Command) *fileFlags {
	f := &fileFlags{format: choice{"", fileFormats}}
	cmd.Flags().StringVar(&f.prefix, "prefix", "", "`text` that the names of the secrets begin with, such as app/, and the keys of the file do not")
	f.format.flag(cmd, "format", "`format` of the file: env, json or yaml (default by its name)")
	return f
}

// of returns the format of the file at path.
func (f *fileFlags) of(path string) (string, error) {
	if f.format.word != "" {
		return f.format.word, nil
	}
	if format := formatOfFile(path); format != "" {
		return format, nil
	}
	return "", usagef("%s: the name does not tell the format: give --format %s", path, strings.Join(fileFormats, ", "))
}

// imported is what an import does, or would do, with one secret.
type imported struct {
	SecretName upstream.SecretName
	Result     string             // created, updated or unchanged
	VersionID  upstream.VersionID `json:"VersionId"`

	value upstream.SecretData
}

func (a *app) secretImportCommand() *cobra.Command {
	var (
		out    output
		dryRun bool
	)
	cmd := &cobra.Command{
		Use:   "import FILE",
		Short: "Store the keys of a .env, JSON or YAML file as secrets",
		Long: `Store every key of a file as a secret of its own, whose name is --prefix and the key. What is not
there is created, what has another value gets a new version, and what has the same is left
alone, so that an import can be repeated. Nothing is ever deleted. - is standard input.

Everything is checked before anything is written. With --dry-run nothing is written at all.

In .env files a value is bare, in single quotes, or in double quotes with escapes. What their
readers take differently, such as a $ that no single quotes keep, is a mistake. In JSON and
YAML a text is stored as it is, and anything else as its JSON.`,
		Example: `  secretagent secret import .env --prefix app/ --dry-run
  secretagent secret import secrets.yaml --prefix app/
  secretagent secret import - --format json --prefix app/ <secrets.json`,
		Args: cobra.ExactArgs(1),
	}
	flags := newFileFlags(cmd)
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "say what would be done, and write nothing")
	cmd.RunE = a.run(func(ctx context.Context, args []string) error {
		format, err := flags.of(args[0])
		if err != nil {
			return err
		}
		plan, err := a.readImport(args[0], format, flags.prefix)
		if err != nil {
			return err
		}
		files := agent.MissingFiles
		if dryRun {
			files = agent.ExistingFiles
		}
		done := 0
		err = a.withFiles(ctx, files, func(m upstream.Manager) error {
			if err := compareImport(ctx, m, plan); err != nil || dryRun {
				return err
			}
			for i := range plan {
				if err := store(ctx, m, &plan[i]); err != nil {
					return err
				}
				done++
			}
			return nil
		})
		if dryRun && errors.Is(err, agent.ErrNoDatabase) { // all of it is missing, as planned
			err = nil
		}
		if dryRun && err == nil {
			done = len(plan)
		}
		if done > 0 {
			err = errors.Join(err, a.printImport(&out, plan[:done], dryRun))
		}
		if err != nil && done > 0 {
			return withHint(err, "%d of %d were written; repeat the import for the rest", done, len(plan))
		}
		return err
	})
	return out.of(cmd)
}

// readImport returns what a file says, every secret as to be created.
func (a *app) readImport(path, format, prefix string) (plan []imported, err error) {
	text, source, err := a.readInput("secrets", path, maxImport)
	if err != nil {
		return nil, err
	}
	if len(text) > maxImport {
		return nil, usagef("%s: is larger than %d bytes", source, maxImport)
	}
	entries, err := readEntries(format, source, text)
	errs := []error{err}
	id := upstream.VersionID(time.Now().UTC().Format("20060102T150405.000Z"))
	for _, e := range entries {
		name, length := upstream.SecretName(prefix+e.key), len(e.value.Reveal())
		switch err := name.Validate(); {
		case err != nil:
			errs = append(errs, lineError(source, e.line, "with the prefix the key is no name of a secret: %v", err))
		case length == 0:
			errs = append(errs, lineError(source, e.line, "there is no value, and no secret is empty: leave the key out"))
		case length > upstream.MaxSecretDataLen:
			errs = append(errs, lineError(source, e.line, "the value is larger than %d bytes", upstream.MaxSecretDataLen))
		}
		plan = append(plan, imported{SecretName: name, Result: "created", VersionID: id, value: e.value})
	}
	if err := errors.Join(errs...); err != nil {
		return nil, usageError{err}
	}
	if len(plan) == 0 {
		return nil, usagef("%s: holds no secret", source)
	}
	return plan, nil
}

// compareImport finds out what is there already.
func compareImport(ctx context.Context, m upstream.Manager, plan []imported) error {
	for i := range plan {
		p := &plan[i]
		now, err := m.GetSecretValue(ctx, upstream.SecretRef{SecretName: p.SecretName})
		switch {
		case errors.Is(err, upstream.ErrNotFound):
		case err != nil:
			return err
		case now.SecretDataType != upstream.DataTypeBinary && string(now.SecretData.Reveal()) == string(p.value.Reveal()):
			p.Result, p.VersionID = "unchanged", now.VersionID
		default:
			p.Result = "updated"
		}
	}
	return nil
}

// store writes one secret of an import.
func store(ctx context.Context, m upstream.Manager, p *imported) (err error) {
	switch p.Result {
	case "created":
		_, err = m.CreateSecret(ctx, upstream.CreateSecretInput{SecretName: p.SecretName, VersionID: p.VersionID, SecretData: p.value, SecretDataType: upstream.DataTypeText})
	case "updated":
		_, err = m.PutSecretValue(ctx, upstream.PutSecretValueInput{SecretName: p.SecretName, VersionID: p.VersionID, SecretData: p.value, SecretDataType: upstream.DataTypeText})
	}
	return err
}

func (a *app) printImport(out *output, done []imported, dryRun bool) error {
	t := newTable("NAME", "RESULT", "VERSION")
	for _, p := range done {
		result := p.Result
		if dryRun && result != "unchanged" {
			result = "would be " + result
		}
		t.add(plain, string(p.SecretName), result, string(p.VersionID))
	}
	return a.print(out, map[string]any{"DryRun": dryRun, "Secrets": done}, t.text(false))
}

func (a *app) secretExportCommand() *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:   "export FILE",
		Short: "Write secrets into a .env, JSON or YAML file, in clear text",
		Long: `Write the current values of all secrets whose names begin with --prefix into a file, in clear
text: the keys are the names without the prefix. "secret import" reads it back. The file can be
read by its owner alone, and one that is there is replaced with --force only. - is standard
output. Secrets that wait for their deletion are left out. A binary one is an error, as is a
value that not all readers of .env files would read alike: nothing is written then.`,
		Example: `  secretagent secret export .env --prefix app/
  secretagent secret export backup.json --prefix app/ --force
  secretagent secret export - --format yaml | gpg --encrypt -r ops >secrets.gpg`,
		Args: cobra.ExactArgs(1),
	}
	flags := newFileFlags(cmd)
	cmd.Flags().BoolVar(&force, "force", false, "replace a file that is there")
	cmd.RunE = a.run(func(ctx context.Context, args []string) error {
		path := args[0]
		format, err := flags.of(path)
		if err != nil {
			return err
		}
		var values map[string]upstream.SecretData
		if err := a.withManager(ctx, func(m upstream.Manager) (err error) {
			values, err = readExport(ctx, m, flags.prefix)
			return err
		}); err != nil {
			return err
		}
		content, err := agent.FormatTexts(format, values, func(key string) upstream.SecretName { return upstream.SecretName(flags.prefix + key) })
		if err != nil {
			return withHint(fmt.Errorf("format %s: %w", format, err), "choose --format json or yaml, which carry any name and text, or another --prefix")
		}
		if path == "-" {
			a.warningf("secrets in clear text follow")
			return a.write(content)
		}
		err = agent.WriteClearText(path, content, force)
		if errors.Is(err, fs.ErrExist) {
			return usageError{withHint(fmt.Errorf("%s is there already", path), "name another file, or replace it with --force")}
		}
		if err != nil {
			return err
		}
		a.warningf("%s holds %s in clear text: whoever reads it has them", path, many(len(values), "secret"))
		return nil
	})
	return cmd
}

// readExport returns the values of the secrets below prefix: rest of the name → value.
func readExport(ctx context.Context, m upstream.Manager, prefix string) (map[string]upstream.SecretData, error) {
	secrets, err := allPages(func(page upstream.Page) ([]upstream.SecretMetadata, int, error) {
		answer, err := m.ListSecrets(ctx, upstream.ListSecretsInput{Page: page})
		return answer.Secrets, answer.TotalCount, err
	})
	if err != nil {
		return nil, err
	}
	values := map[string]upstream.SecretData{}
	for _, s := range secrets {
		key, ok := strings.CutPrefix(string(s.SecretName), prefix)
		if !ok || key == "" || !s.PlannedDeleteTime.IsZero() {
			continue
		}
		value, err := m.GetSecretValue(ctx, upstream.SecretRef{SecretName: s.SecretName})
		if err != nil {
			return nil, err
		}
		if value.SecretDataType == upstream.DataTypeBinary {
			return nil, withHint(fmt.Errorf("%s is binary, which no text file carries", s.SecretName), "leave it out by another --prefix, and take it with: secretagent secret get %s", s.SecretName)
		}
		values[key] = value.SecretData
	}
	if len(values) == 0 {
		return nil, &upstream.Error{Message: fmt.Sprintf("no secret has a name that begins with %q", prefix), Err: upstream.ErrNotFound}
	}
	return values, nil
}
