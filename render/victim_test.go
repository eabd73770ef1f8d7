package render

// victimDir, when set, makes the test binary an agent that is killed.
const victimDir = "RENDER_TEST_VICTIM_DIR"

func runVictim(string) {}
