package agent

import (
	"errors"
	"os"

	"secretagent/agent/config"
	"secretagent/cache"
	"secretagent/render"
)

// FilesError lists what is wrong with the files to render, one error for each problem.
type FilesError struct {
	Configured bool // the configuration or a template is at fault: nothing was tried
	Problems   []error
}

// newFilesError returns what err joins as a list; nil for nil.
func newFilesError(configured bool, err error) error {
	if err == nil {
		return nil
	}
	return &FilesError{Configured: configured, Problems: joined(err)}
}

// joined returns the errors that err was joined from, also in several steps.
func joined(err error) []error {
	list, ok := err.(interface{ Unwrap() []error })
	if !ok {
		return []error{err}
	}
	var all []error
	for _, e := range list.Unwrap() {
		all = append(all, joined(e)...)
	}
	return all
}

// Error returns every problem on a line of its own.
func (e *FilesError) Error() string { return errors.Join(e.Problems...).Error() }

// Unwrap returns the problems.
func (e *FilesError) Unwrap() []error { return e.Problems }

// CheckFiles reads and parses every template and checks what else can be known of templates and
// sets without their secrets. The error is a [*FilesError].
func CheckFiles(cfg *config.Config) error {
	deps := Deps{}.withDefaults()
	opts := renderOptions(cfg, deps.Logger)
	if cfg.Exec != nil {
		opts.Signal = func(os.Signal) error { return nil } // to the child, which does not exist yet
	}
	_, err := render.New((*cache.Cache)(nil), opts)
	return newFilesError(true, err)
}
