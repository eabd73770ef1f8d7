package agent

import "errors"

// FilesError lists what could not be rendered, one error for each problem.
type FilesError struct{ Problems []error }

// newFilesError returns what err joins as a list; nil for nil.
func newFilesError(err error) error {
	if err == nil {
		return nil
	}
	return &FilesError{joined(err)}
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
