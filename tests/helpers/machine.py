"""The machine that tests compute on."""

# CPU devices that XLA pretends to have. Every client and many programs pay for each: four show
# what differs between one device, a pair and more, and three make an odd ring.
DEVICES = 4
