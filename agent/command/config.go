package command

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"secretagent/agent"
	"secretagent/agent/convert"
)

func (a *app) configCommand() *cobra.Command {
	return group("config", "Work on the configuration file",
		"Work on the configuration file. To look for mistakes in it, use \"secretagent check\".", a.configConvertCommand())
}

func (a *app) configConvertCommand() *cobra.Command {
	var (
		from        = choice{words: convert.Tools}
		template    bool
		left, right string
		dir         string
		opts        convert.Options
	)
	cmd := &cobra.Command{
		Use:   "convert --from PROGRAM FILE",
		Short: "Turn the configuration of another agent into agent.yaml",
		Long: `Turn the configuration of another program into agent.yaml, and the templates that it names into
ours, and print it. FILE may be - for standard input. PROGRAM is one of

  kms-agent        Alibaba's KMS Agent, TOML
  aws-agent        AWS Secrets Manager Agent, TOML
  vault-agent      Vault Agent and OpenBao Agent, HCL or JSON
  consul-template  consul-template, HCL or JSON

Every key is taken over, or named in a comment with the reason and what to do. Where a template
calls what has no counterpart, the new one stops with a message in that place. How many comments
there are is said on standard error. Nothing is started, and no secret is read or moved.

The templates are printed in agent.yaml. With --out DIR, agent.yaml and the templates are written
there as files; none that exists is replaced. With --template, FILE is a template, not a
configuration, and the new template is printed.

The secret in place of secret/data/app/db is app/db: the mount is left out. --mount kv=team/ makes
team/app/db of kv/data/app/db, and tells a mount with a slash in it, as in --mount team/kv=.
The secrets are expected in the built-in backend, with --region in Alibaba Cloud KMS.`,
		Example: `  secretagent config convert --from vault-agent agent.hcl >agent.yaml
  secretagent config convert --from consul-template config.hcl --out /etc/secretagent --env DC=eu1
  secretagent config convert --from vault-agent --template app.ctmpl >app.tmpl
  secretagent check --config agent.yaml`,
		Args: cobra.ExactArgs(1),
		RunE: a.run(func(_ context.Context, args []string) error {
			switch {
			case from.word == "":
				return usagef("--from is missing: must be one of %s", strings.Join(convert.Tools, ", "))
			case template && (from.word == "kms-agent" || from.word == "aws-agent"):
				return usagef("--template: %s has no templates", from.word)
			case template && dir != "":
				return usagef("--template prints the new template: it takes no --out")
			case !template && left+right != "":
				return usagef("--left-delim and --right-delim need --template: a configuration says its delimiters")
			}
			src, name, err := a.readConverted(args[0])
			if err != nil {
				return err
			}
			opts.From, opts.Apart, opts.Function = from.word, dir != "", agent.HasTemplateFunction
			opts.ReadFile = func(path string) ([]byte, error) { return a.readTemplate(args[0], path) }
			if template {
				text, notes, err := convert.Template(name, src, left, right, opts)
				if err != nil {
					return usageError{err}
				}
				for _, n := range notes {
					a.printf("%s", n)
				}
				_, err = io.WriteString(a.Stdout, text)
				return err
			}
			result, err := convert.Config(name, src, opts)
			if err != nil {
				return usageError{err}
			}
			if dir == "" {
				_, err = io.WriteString(a.Stdout, result.Config)
			} else {
				err = writeNew(dir, append([]convert.File{{Path: "agent.yaml", Text: result.Config}}, result.Templates...))
			}
			if err == nil {
				a.printf("%d comments say what has no counterpart or not the same; then run secretagent check", len(result.Notes))
			}
			return err
		}),
	}
	from.flag(cmd, "from", "`program` whose configuration it is: "+strings.Join(convert.Tools, ", "))
	cmd.Flags().StringVar(&dir, "out", "", "`folder` for agent.yaml and the templates; nothing there is replaced")
	cmd.Flags().BoolVar(&template, "template", false, "FILE is a template")
	cmd.Flags().StringVar(&left, "left-delim", "", "left `delimiter` of the template (default {{)")
	cmd.Flags().StringVar(&right, "right-delim", "", "right `delimiter` of the template (default }})")
	cmd.Flags().StringVar(&opts.Region, "region", "", "`region` of Alibaba Cloud KMS where the secrets are (default: as FILE says, or the built-in backend)")
	cmd.Flags().StringToStringVar(&opts.Mounts, "mount", nil, "`MOUNT=PREFIX`: names of secrets below a mount of Vault begin with PREFIX")
	cmd.Flags().StringToStringVar(&opts.Env, "env", nil, "`NAME=VALUE`: templates get VALUE for a variable of the environment")
	return cmd
}

// readConverted returns a configuration or a template of another program, and its name for messages.
func (a *app) readConverted(path string) (src []byte, name string, err error) {
	if info, err := os.Stat(path); err == nil && info.IsDir() {
		return nil, "", usagef("%s is a folder: convert its files one by one", path)
	}
	src, name, err = a.readInput("configuration", path, convert.MaxInput)
	return src, filepath.Base(name), err
}

// readTemplate returns a template that a configuration names. There, a relative path is one of the
// working folder; it may also be meant from the folder of the configuration.
func (a *app) readTemplate(config, path string) ([]byte, error) {
	places := []string{path}
	if !filepath.IsAbs(path) {
		places = append(places, filepath.Join(filepath.Dir(config), path))
	}
	for _, place := range places {
		if info, err := os.Stat(place); err == nil && info.Mode().IsRegular() {
			src, _, err := a.readInput("template", place, convert.MaxInput)
			return src, err
		}
	}
	return nil, fs.ErrNotExist
}

// writeNew writes files below dir, which it makes where it is missing. Where one of them exists it
// writes none.
func writeNew(dir string, files []convert.File) (err error) {
	for _, file := range files {
		if _, err := os.Lstat(filepath.Join(dir, file.Path)); err == nil {
			return usageError{withHint(fmt.Errorf("%s is there already", filepath.Join(dir, file.Path)), "no file is replaced: name another folder with --out")}
		} else if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	var written []string
	defer func() {
		if err != nil {
			for _, path := range written {
				_ = os.Remove(path)
			}
		}
	}()
	for _, file := range files {
		path := filepath.Join(dir, file.Path)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			return err
		}
		f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return err
		}
		written = append(written, path)
		_, err = f.WriteString(file.Text)
		if err := errors.Join(err, f.Close()); err != nil {
			return err
		}
	}
	return nil
}
