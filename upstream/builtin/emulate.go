package builtin

// Emulate is what a [Store] does as the cloud does it, where that would be wrong or without
// meaning otherwise; see the section Emulation of the package documentation. The zero value
// emulates nothing.
type Emulate struct {
	// PutMovesStages makes a repeated PutSecretValue, of the same data under the same id, set the
	// labels of the version where it names any.
	PutMovesStages bool
}
