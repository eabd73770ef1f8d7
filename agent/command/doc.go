// Package command is the command line of secretagent: it reads arguments and configuration,
// calls the agent or the backend, and turns the outcome into text and an exit code. Each verb
// has a file.
//
//	code := command.Main(ctx, command.Process{Args: os.Args[1:], Stdout: os.Stdout, …})
//
// The rules of the interface stand at the top of terminal.go. Exit codes are those of package
// upstream: 0 done, 1 failed, 2 usage or configuration, 3 not found, 4 denied, 5 upstream
// unavailable, 6 exists.
//
// # Design notes
//
// The secret verbs drive an [upstream.Manager] and nothing else, so they do the same on the
// built-in backend, with or without a running agent, and on the cloud. While an agent runs it
// has the database open, and they ask it over the unix socket of its KMS API; otherwise they
// open the database themselves.
//
// get is not one of them on purpose: it asks the endpoint of the running agent, as an
// application would, and so shows what an application gets.
//
// A version id that is not given is made from the time, to the millisecond: it sorts, it says
// when, and two writers in the same millisecond get an error instead of a lost write. Scripts
// that may be repeated should give their own id: a put with the same id and the same value
// changes nothing.
package command
