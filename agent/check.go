package agent

import "secretagent/upstream"

// inSection returns the problems of a part's options with the section before their keys; nil for
// nil.
func inSection(section string, err error) error {
	var p upstream.OptionErrors
	p.Add(section, err)
	return p.Err()
}
