package keyfile

import "time"

// leftoverAge is how old a temporary file is before it can be a leftover: far longer than it
// takes to make one.
const leftoverAge = time.Hour

// nonBlock is for systems whose pipes are files.
const nonBlock = 0

// LockFolder locks nothing: Windows cannot lock folders.
func LockFolder(string, time.Duration) (unlock func(), locked bool) { return func() {}, false }

// checkWritable checks nothing: access lists decide.
func checkWritable(string) error { return nil }
