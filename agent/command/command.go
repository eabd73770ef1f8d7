package command

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/spf13/cobra"

	"secretagent/agent/config"
	"secretagent/agent/lines"
	"secretagent/upstream"
)

// Process is what the command line gets from the operating system. Every field is required.
type Process struct {
	Args           []string // without the program name
	Stdin          io.Reader
	Stdout, Stderr io.Writer // Stderr is written in the background, also while Stdout is
	Getenv         func(string) string
	Build          Build  // may be empty, as far as the Go command knows better
	Example, Trust string // agent.example.yaml and SECURITY.md, to print
}

// Main runs one command and returns the exit code. It blocks until the command is done, for
// run until ctx ends.
func Main(ctx context.Context, p Process) int {
	a := &app{Process: p, terminal: p.Stderr}
	a.Build = a.Build.complete()
	// Nobody waits for the reader of standard error, neither the agent nor the end of a command.
	a.stderr = lines.New(p.Stderr, lines.Options{OnRecovery: a.tellLost})
	a.Stderr = a.stderr
	defer a.stderr.Close()
	root := a.root()
	root.SetArgs(p.Args)
	root.SetIn(p.Stdin)
	root.SetOut(p.Stdout)
	root.SetErr(a.Stderr)
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return upstream.ExitOK
	}
	if exit, ok := errors.AsType[exitCode](err); ok {
		return int(exit)
	}
	if !a.ran {
		err = meant(cmd, usageError{err}) // cobra refused the arguments
	}
	return a.report(err, cmd.CommandPath())
}

// app holds what the verbs share. Its Stderr does not block.
type app struct {
	Process
	terminal   io.Writer                   // what is behind Stderr
	stderr     *lines.Writer               // Stderr, except in tests
	log        atomic.Pointer[slog.Logger] // of the agent
	configFlag string
	stateDir   string // of --state-dir
	keyring    string // of --keyring
	logLevel   choice // of --log-level; empty: as configured
	ran        bool   // a verb was called: its errors are not of cobra
}

// exitCode is an outcome that was reported already.
type exitCode int

func (e exitCode) Error() string { return fmt.Sprintf("exit code %d", int(e)) }

// run makes a verb out of fn.
func (a *app) run(fn func(ctx context.Context, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		a.ran = true
		return fn(cmd.Context(), args)
	}
}

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "secretagent",
		Short: "Hands secrets to the applications of this host",
		Long: `secretagent fronts a Secrets Manager, Alibaba Cloud KMS or its own built-in backend,
keeps the current values in a cache that refreshes itself, and hands them to applications:
over a localhost HTTP endpoint, as files rendered from templates, and in the environment of
a child process.

Exit codes: 0 done, 1 failed, 2 usage or configuration, 3 not found, 4 denied,
5 upstream unavailable, 6 exists.

"secretagent help" lists the topics: configuration, templates, http, errors and more.`,
		Example: `  secretagent run --config agent.yaml
  secretagent secret create demo/db --data-file value.json
  secretagent get demo/db --field password`,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          cobra.NoArgs,
		RunE:          help,
		Version:       a.Build.Version, // which adds --version and -v
	}
	root.SetVersionTemplate(a.Build.answer().line())
	root.PersistentFlags().StringVar(&a.configFlag, "config", "", "configuration `file` (default $"+config.EnvFile+
		", agent.yaml, /etc/secretagent/agent.yaml, agent.example.yaml)")
	root.PersistentFlags().StringVar(&a.stateDir, "state-dir", "", "`folder` for what the configuration does not place elsewhere\n"+
		"(default $STATE_DIRECTORY, /var/lib/secretagent for a configuration in /etc/secretagent, var beside it)")
	_ = root.MarkPersistentFlagDirname("state-dir")
	root.CompletionOptions.HiddenDefaultCmd = false
	root.AddGroup(&cobra.Group{ID: "agent", Title: "The agent:"}, &cobra.Group{ID: "secrets", Title: "Secrets and keys:"})
	for _, c := range []*cobra.Command{a.runCommand(), a.execCommand(), a.renderCommand(), a.checkCommand(), a.reloadCommand(), a.getCommand(), a.statusCommand(), a.initCommand(), a.configCommand()} {
		c.GroupID = "agent"
		root.AddCommand(c)
	}
	for _, c := range []*cobra.Command{a.secretCommand(), a.keysCommand(), a.backupCommand(), a.restoreCommand(), a.copyCommand()} {
		c.GroupID = "secrets"
		root.AddCommand(c)
	}
	root.AddCommand(a.versionCommand())
	root.SetHelpCommand(a.helpCommand())
	a.completeFlags(root)
	root.InitDefaultCompletionCmd()
	completion, _, _ := root.Find([]string{"completion"})
	completion.RunE = help // otherwise a shell that it does not know gets the help to read
	return root
}

// source returns where the configuration is and what the flags say beside it.
func (a *app) source() (config.Source, error) {
	path, err := config.Find(a.configFlag, a.Getenv, ".")
	if err != nil {
		err = usageError{withHint(err, "secretagent init writes one; secretagent help agent.yaml prints one with every key")}
	}
	return config.Source{File: path, StateDir: a.stateDir, Keyring: a.keyring}, err
}

// keyringFlag adds --keyring to a verb that does what the agent does.
func (a *app) keyringFlag(cmd *cobra.Command) {
	cmd.Flags().StringVar(&a.keyring, "keyring", "", "`file` to use in place of every keyring of the configuration, such as a copy that\nsystemd hands over as a credential")
	_ = cmd.MarkFlagFilename("keyring")
}

// loadConfig finds and reads the configuration, and checks it by the rules.
func (a *app) loadConfig(rules ...config.Rules) (*config.Config, error) {
	source, err := a.source()
	if err != nil {
		return nil, err
	}
	return source.Load(rules...)
}

// meant adds to err, which refuses the arguments of cmd, the verb that was probably meant: one that
// is named so, of cmd or a group below, before one that is spelt like it.
func meant(cmd *cobra.Command, err error) error {
	args := cmd.Flags().Args()
	if !cmd.HasAvailableSubCommands() || len(args) == 0 {
		return err
	}
	var verbs []string
	for _, match := range []func(*cobra.Command, string) []string{verbsNamed, verbsLike} {
		for _, group := range append([]*cobra.Command{cmd}, cmd.Commands()...) {
			verbs = append(verbs, match(group, args[0])...)
			if len(verbs) > 0 && group == cmd {
				break
			}
		}
		if len(verbs) > 0 {
			return withHint(err, "did you mean: %s", strings.Join(verbs, ", or "))
		}
	}
	return err
}

// verbsNamed returns the verbs of group that are called word here or in other programs.
func verbsNamed(group *cobra.Command, word string) (paths []string) {
	for _, verb := range group.Commands() {
		if verb.Name() == word || slices.Contains(verb.SuggestFor, word) {
			paths = append(paths, verb.CommandPath())
		}
	}
	return paths
}

// verbsLike returns the verb of group that is spelt like word.
func verbsLike(group *cobra.Command, word string) []string {
	var names []string
	for _, verb := range group.Commands() {
		names = append(names, verb.Name())
	}
	if name, ok := upstream.Suggest(word, names); ok {
		return []string{group.CommandPath() + " " + name}
	}
	return nil
}

// group makes a command that only holds others.
func group(use, short, long string, verbs ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{Use: use, Short: short, Long: long, Args: cobra.NoArgs, RunE: help}
	cmd.AddCommand(verbs...)
	return cmd
}

func help(cmd *cobra.Command, _ []string) error { return cmd.Help() }

// choice is the value of a flag that takes one of some words.
type choice struct {
	word  string
	words []string
}

func (c *choice) String() string { return c.word }
func (c *choice) Type() string   { return "word" }

func (c *choice) Set(word string) error {
	if last := len(c.words) - 1; !slices.Contains(c.words, word) {
		return fmt.Errorf("must be %s or %s", strings.Join(c.words[:last], ", "), c.words[last])
	}
	c.word = word
	return nil
}

// flag adds the flag to a verb, and its completion.
func (c *choice) flag(cmd *cobra.Command, name, usage string) {
	cmd.Flags().Var(c, name, usage)
	_ = cmd.RegisterFlagCompletionFunc(name, cobra.FixedCompletions(c.words, cobra.ShellCompDirectiveNoFileComp))
}

// output is the value of --output, the form of an answer.
type output struct{ choice }

func (o *output) json() bool { return o.word == "json" }

// of adds --output to a verb that prints data and returns the verb.
func (o *output) of(cmd *cobra.Command) *cobra.Command {
	o.choice = choice{"text", []string{"text", "json"}}
	o.flag(cmd, "output", "`form` of the answer: text or json")
	return cmd
}
