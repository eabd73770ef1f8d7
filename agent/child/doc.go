// Package child runs one application with secrets in its environment and supervises it.
//
//	s, err := child.New(cache, child.Options{
//		Command: []string{"/usr/bin/app", "--serve"},
//		Env:     []child.Variable{{Name: "DB_PASSWORD", Ref: ref, Field: "password"}},
//		Stdin:   os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr,
//	})
//	err = s.Run(ctx) // returns when the application has ended
//
// [Supervisor.Run] starts the application only when every variable is known. While the
// upstream is unavailable it waits, with jittered back-off, for at most
// Options.StartTimeout; a secret that does not exist, is denied or does not fit its variable
// is an error at once, because waiting would not change it. From then on the application's
// end is the end of Run, and its exit code is in the [ExitError] that Run returns.
//
// When a secret changes, all variables are read again from one consistent moment and
// compared with what the application has. Only a difference counts: a new version with the
// same data does nothing. Options.OnChange says what a difference does. A burst of changes
// acts once (Options.Debounce), a fleet does not act at the same instant (Options.Splay), and
// secrets that change all the time act at a bounded rate (Options.MaxRestarts). When the
// variables cannot be read again, or no longer fit, the running application stays as it is.
//
// # Environment
//
// The application gets, in this order of precedence:
//
//  1. the variables of Options.Env; two of them with one name are an error that names both;
//  2. what it inherits from this process: everything, or with Options.Pristine nothing; then
//     narrowed by Options.Allow and Options.Deny. Deny wins over Allow. What is in
//     Options.Withheld, the credentials of this process, it inherits only where Allow has its
//     name, not a pattern that fits.
//
// Variables by which the service manager speaks to this process (NOTIFY_SOCKET, LISTEN_FDS
// and their like) are never inherited. PWD follows Options.Dir when that is set. On Windows
// the system adds SYSTEMROOT when it is missing.
//
// A JSON secret that becomes one variable per key (a [Variable] without Name) chooses their
// names. A writer of the secret could choose LD_PRELOAD, PATH or NODE_OPTIONS and so run code
// in the application. Such names are refused unless the configuration spells them out.
//
// Values reach the application through its environment only: never a command line, a log, an
// error or a file. The same user and root can read them in /proc/PID/environ, as of every
// program that takes secrets from its environment.
//
// # Rights
//
// With Options.User, which a process of root can have, the application runs as that user: it
// cannot open what belongs to this process, such as a database, a keyring, a token or a socket of
// mode 0600. Without it the application has every right of this process, and what it is not told
// it can read by itself: there is no isolation between the two.
//
// # Processes
//
// The application runs in a process group of its own. Signals go to the application alone,
// or with Options.SignalGroup to the group. When the application has ended, whatever is left
// of its group is killed before Run returns or the next application starts. A descendant
// that made a group or session of its own is not in that group and escapes.
//
// When the standard input is our controlling terminal, the application shares our process
// group instead, so that the shell outside sees one job: Ctrl-C and Ctrl-Z reach both,
// reading from the terminal works, and an interactive shell inside does its own job control.
// The terminal then delivers SIGINT itself. The caller must not end on SIGINT; it hands all
// signals to [Supervisor.Signal], which does not repeat those of the terminal. There is no
// group of the application's own to kill in this mode. An interactive shell ignores SIGTERM;
// SIGHUP as Options.StopSignal ends it without the grace period.
//
// On Linux and FreeBSD the kernel kills the application when this process dies in whatever
// way, kill -9 included, unless the application is set-user-id or has file capabilities. On
// Windows a job object does so for all descendants. On other systems an application can
// outlive a supervisor that is killed with SIGKILL; a supervisor that ends in any other way
// takes it down there too.
//
// As process 1 of a container, or with Options.Subreaper, orphans that end up with this
// process are reaped by what [StartReaper] starts, also where there is no application (Linux).
//
// # Design notes
//
// The supervisor keeps a keyed digest of the variables for the comparison, under a random key
// of its own, and not the values: they are needed for the moment of a start only. What Go
// strings held until then is left to the garbage collector.
//
// The kernel ties the parent-death signal to the thread that forked, not to the process. The
// goroutine that starts the application is therefore locked to its thread and stays on it
// until the application has ended.
//
// The end of the application is first observed without reaping it (waitid with WNOWAIT). Its
// process id, which is also the id of its group, cannot be given to another process before
// the group has been killed.
//
// The reaper must not take the exit status of processes that other parts of the program
// started and wait for. The kernel does not tell adopted orphans from such children. A zombie
// is therefore reaped at once only when it belongs to the application's group, and otherwise
// when three looks, a second apart, found it still there: a parent that waits for its child
// collects it in far less time.
//
// A restart that would exceed the rate is postponed, never dropped, and the application keeps
// running until then. An application that ends by itself is not started again: the service
// manager or the container runtime does that, which know about back-off, budgets and alarms,
// and want the exit code.
package child
