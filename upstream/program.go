package upstream

import (
	"fmt"
	"strings"
)

// NoProgram returns what is wrong with a command whose first element does not lead to a program, because of err.
// Commands are lists of words: those who write a whole line are told so.
func NoProgram(first string, err error) string {
	reason := "must start with a program that can be run: " + err.Error()
	if words := strings.Fields(first); len(words) > 1 {
		reason += fmt.Sprintf("; no shell splits this: make each word an element of its own, [%s, …]", words[0])
	}
	return reason
}
