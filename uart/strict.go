//go:build !weakened

package uart

// weakened takes the second reading of the serial number away, and the OK after it. It is for the build that shows that
// the mutation campaign of package station finds what these prevent, and for no other.
const weakened = false
