package render

import (
	"cmp"
	"context"
	"log/slog"
	"regexp"
	"time"
)

// Check is a program that looks at new content before it is published. While it fails, what is
// published stays, and the check is repeated as every other failure is. It runs as the Command
// of a [Hook] does, but not for content that is published already, and not by
// [Renderer.Diff], which writes nothing that it could look at.
type Check struct {
	// Command is a program and its arguments. {{ .Path }} in an argument, which one of them
	// must have, stands for the staged file, complete, with its final mode and owner, under a
	// temporary name in the folder of the destination; or for the staged folder of a [Set], in
	// which the files have their names.
	Command []string

	// Timeout bounds one run; zero means 30 s.
	Timeout time.Duration
}

// stagedPath is what stands for the path in an argument.
var stagedPath = regexp.MustCompile(`\{\{\s*\.Path\s*\}\}`)

// run lets the program look at what is staged at path.
func (c *Check) run(ctx context.Context, log *slog.Logger, path string, mask func() *masker) error {
	name := "command " + c.Command[0]
	argv := make([]string, len(c.Command))
	for i, arg := range c.Command {
		argv[i] = stagedPath.ReplaceAllLiteralString(arg, path)
	}
	return bounded(ctx, cmp.Or(c.Timeout, defaultHookTimeout), "check: "+name, func(ctx context.Context) error {
		return runCommand(ctx, log.With("check", name), argv, mask)
	})
}
